"""What counts as a changed answer, by hand and beside answers that are really generated."""

from __future__ import annotations

import torch

from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.inputs.answer_tokens import OWN_ANSWER_TOKENS, generate_ids
from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.models import load
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.25, "grid"), Cut(4, 0)))


def test_an_answer_changes_as_a_whole_and_filler_never_counts() -> None:
    likely = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 2], [0, 1, 2, 1], [0, 1, 2, 0]])
    pruned = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 2], [0, 1, 2, 2], [0, 1, 2, 1]])
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()

    def distributions(ids: torch.Tensor) -> torch.Tensor:
        return log_probabilities(4.0 * torch.nn.functional.one_hot(ids, 3))

    # Not at all; in its first of four tokens; in where it ends; in filler only.
    _, changed = answer_deviation(distributions(likely), distributions(pruned), valid)
    assert changed.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_own_answers_change_where_they_are_really_generated_otherwise() -> None:
    loaded = load("embedded")
    own = load_samples(n=14, split="eval").unanswered()
    batch = [own[i] for i in range(len(own))]
    prompts = prompt_inputs(loaded.processor, batch, loaded.model)

    def answers() -> list[list[int]]:
        return generate_ids(loaded.model, loaded.processor, prompts, OWN_ANSWER_TOKENS)

    before = answers()
    with apply(loaded.model, PLAN):
        after = answers()
    with torch.inference_mode():
        encoded = encode(loaded.processor, batch, loaded.model)
        tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
        replayed = tape.replay(list(PLAN.cuts), encoded.positions)
        _, changed = answer_deviation(
            log_probabilities(tape.logits(encoded.positions)),
            log_probabilities(replayed.logits),
            encoded.valid,
        )
    really = [float(one != other) for one, other in zip(before, after, strict=True)]
    assert changed.tolist() == really
    assert 0 < sum(really) < len(own)
