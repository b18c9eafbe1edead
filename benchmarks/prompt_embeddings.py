"""What it costs that an engine numbers the tokens of a pruned prompt anew.

    python -m benchmarks.prompt_embeddings lowered.yaml --samples 700

`tpcal.pruned_prompt` gives the positions that tokens had before the cut. An engine that takes
embeddings alone numbers them from 0 on. This benchmark answers unseen samples of the built-in
model in both ways, and unpruned, and prints how many answers are right and how many agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import torch

import tpcal
from tpcal.calibrate.evaluation.metrics import is_right, normalise
from tpcal.calibrate.inputs.answer_tokens import generate_ids, pad_id
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.plan_records import Plan

LONGEST = 16
WAYS = ("unpruned", "positions kept", "numbered anew")


@click.command()
@click.argument("file", metavar="PLAN")
@click.option("--samples", default=700, show_default=True, help="Number of unseen samples.")
def main(file: str, samples: int) -> None:
    """Compares the answers of a plan that cuts before layer 0, with both kinds of positions."""
    loaded, plan = ModelChoice().load(), tpcal.load_plan(file)
    asked = list(DataChoice(samples=samples).load("eval"))
    answers = [_answers(loaded, plan, sample) for sample in asked]
    for way in WAYS:
        right = sum(
            is_right(own[way], str(sample.answer))
            for own, sample in zip(answers, asked, strict=True)
        )
        same = sum(normalise(own[way]) == normalise(own["unpruned"]) for own in answers)
        click.echo(f"{way}: {right / samples:.3f} right, {same / samples:.3f} as unpruned")
    alike = sum(normalise(own[WAYS[1]]) == normalise(own[WAYS[2]]) for own in answers)
    click.echo(f"Both kinds of positions give the same answer to {alike / samples:.3f}.")


def _answers(loaded: Loaded, plan: Plan, sample: Sample) -> dict[str, str]:
    """The answers to a sample by the names of the ways."""
    inputs = prompt_inputs(loaded.processor, [sample], loaded.model)
    unpruned = _text(loaded, generate_ids(loaded.model, loaded.processor, inputs, LONGEST)[0])
    with tpcal.apply(loaded.model, plan):
        kept = _text(loaded, generate_ids(loaded.model, loaded.processor, inputs, LONGEST)[0])
    return {WAYS[0]: unpruned, WAYS[1]: kept, WAYS[2]: _numbered_anew(loaded, plan, inputs)}


def _numbered_anew(loaded: Loaded, plan: Plan, inputs: Mapping[str, Any]) -> str:
    """The answer to the embeddings alone, as an engine gives it that knows no positions."""
    prompt = tpcal.pruned_prompt(loaded.model, plan, inputs)
    with torch.inference_mode():
        ids = loaded.model.generate(
            inputs_embeds=prompt.inputs_embeds,
            attention_mask=prompt.attention_mask,
            max_new_tokens=LONGEST,
            do_sample=False,
            pad_token_id=pad_id(loaded.processor),
        )
    return _text(loaded, ids[0].tolist())


def _text(loaded: Loaded, ids: list[int]) -> str:
    tokenizer: Any = loaded.processor.tokenizer
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main()
