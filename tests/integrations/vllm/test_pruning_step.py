"""A toy decoder in steps of any size makes the cuts of one step over the whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpcal import Cut, Plan
from tpcal.integrations.vllm.image_tokens import MOST_NUMBERS, ImageColumns, parts
from tpcal.integrations.vllm.pruning_step import PruningStep, States
from tpcal.integrations.vllm.question import AttentionShape, PromptColumns, QuestionReader
from tpcal.integrations.vllm.stages import Chunk, Span, StagedPrompt
from tpcal.integrations.vllm.support import reads_question
from tpcal.plans.executor.cutting import prepare

N_LAYERS, HIDDEN, LENGTH = 6, 8, 40
N_DEEPSTACK = 3
SPANS = (Span(3, 16), Span(21, 9, marks=(2, 6)))
PLANS = {
    "twice": Plan(
        cuts=(
            Cut(layer=1, keep=0.5, selector="diversity"),
            Cut(layer=3, keep=0.2, selector="grid"),
            Cut(layer=5, keep=0.0),
        )
    ),
    "before the decoder": Plan(cuts=(Cut(layer=0, keep=0.3, selector="random"),)),
    "merging": Plan(cuts=(Cut(layer=2, keep=0.25, selector="pooling"),)),
    "means": Plan(
        merge="mean",
        cuts=(
            Cut(layer=1, keep=0.5, selector="diversity"),
            Cut(layer=4, keep=0.2, selector="random"),
        ),
    ),
    "the question": Plan(
        cuts=(
            Cut(layer=2, keep=0.5, selector="attention"),
            Cut(layer=4, keep=0.2, selector="sparsevlm"),
        )
    ),
    "text": Plan(cuts=(Cut(layer=0, keep=0.3, selector="cdpruner"),)),
}


def image(n_alive: int, n_prompt: int = 0) -> ImageColumns:
    ranks = np.arange(n_alive)
    prompt = PromptColumns(0, np.arange(n_prompt), ()) if n_prompt else None
    return ImageColumns(ranks, ranks, n_alive, 1, prompt)


def test_images_of_other_lengths_are_chosen_from_apart() -> None:
    given = [image(n) for n in (64, 4096, 100, 64, 2048, 1000)]
    lengths = [[one.n_alive for one in part] for part in parts(given, HIDDEN)]
    assert lengths == [[4096, 2048], [1000], [100, 64, 64]]


def test_a_call_of_a_selector_has_bounded_tables() -> None:
    several = parts([image(4096) for _ in range(20)], 3584)
    assert sum(map(len, several)) == 20
    assert max(map(len, several)) == MOST_NUMBERS // (4096 * (4096 + 3584)) == 4
    assert parts([image(20_000)], 3584)  # one image has as many as it needs
    long = [image(64, n_prompt=8000) for _ in range(50)]
    assert max(map(len, parts(long, 3584))) == 4


SHAPE = AttentionShape(n_heads=2, n_kv_heads=1, scaling=0.5)
READER = QuestionReader({1: SHAPE, 3: SHAPE})


def _embedded(seed: int) -> Tensor:
    return torch.randn(LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


class Decoder:
    """Layers that treat tokens one by one, and what each has seen of every request.

    The first layers add to every token its place, as DeepStack adds features.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.waiting: dict[str, States] = {}
        self.seen: dict[str, list[list[Tensor]]] = {}

    def run(self, chunks: Sequence[Chunk], prompts: Sequence[Tensor]) -> Tensor:
        prepared = prepare(self.plan)
        step = PruningStep(self.plan, prepared, chunks, self.waiting, READER)
        given = [p[c.first : c.end] for c, p in zip(chunks, prompts, strict=True)]
        positions = torch.cat([torch.arange(c.first, c.end) for c in chunks])
        filler = torch.zeros(2, HIDDEN)  # as engines pad a step
        hidden, residual = torch.cat([*given, filler]), None
        positions = torch.cat([positions, torch.zeros(2, dtype=torch.int64)])
        step.adds([positions[:, None].float()] * N_DEEPSTACK)
        for layer in range(N_LAYERS):
            at, hidden, residual = step.before_layer(layer, positions, hidden, residual)
            self._see(chunks, layer, at)
            state = hidden if residual is None else hidden + residual
            if reads_question(self.plan):
                step.saw(state, state[:, :4])
            hidden, residual = torch.tanh(state) * 0.5, state
            if layer < N_DEEPSTACK:
                added = step.added_after(layer)
                assert added[:, 0].tolist() == at.tolist()
                hidden = hidden + added * 0.01
        assert residual is not None
        return step.full_length(hidden + residual)

    def _see(self, chunks: Sequence[Chunk], layer: int, positions: Tensor) -> None:
        stage = sum(cut.layer <= layer for cut in self.plan.cuts)
        begin = 0
        for chunk in chunks:
            seen = self.seen.setdefault(chunk.request, [[] for _ in range(N_LAYERS)])
            after, before = (chunk.prompt.n_held(stage, n) for n in (chunk.end, chunk.first))
            n_new = after - before
            seen[layer].append(positions[begin : begin + n_new])
            begin += n_new

    def places(self, request: str) -> list[list[int]]:
        """Places of the tokens that each layer got of a request, in order."""
        return [torch.cat(parts).tolist() for parts in self.seen[request]]


def _chunk(plan: Plan, request: str, first: int, end: int) -> Chunk:
    together = LENGTH - 2 if reads_question(plan) else 0  # the last two are answered
    return Chunk(request, StagedPrompt(plan, SPANS, together), first, end - first)


def _whole(plan: Plan, request: str, prompt: Tensor) -> tuple[list[list[int]], Tensor]:
    decoder = Decoder(plan)
    output = decoder.run([_chunk(plan, request, 0, LENGTH)], [prompt])
    return decoder.places(request), output


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=6).map(sorted))
def test_chunks_of_any_size_make_the_same_cuts(name: str, ends: list[int]) -> None:
    plan, prompt = PLANS[name], _embedded(0)
    places, output = _whole(plan, "a", prompt)
    decoder = Decoder(plan)
    for first, end in pairwise([0, *ends, LENGTH]):
        result = decoder.run([_chunk(plan, "a", first, end)], [prompt])
    assert decoder.places("a") == places
    assert decoder.waiting == {}
    torch.testing.assert_close(result[-1], output[-1])


@pytest.mark.parametrize("name", PLANS)
def test_requests_do_not_see_each_other(name: str) -> None:
    plan, prompts = PLANS[name], [_embedded(1), _embedded(2), _embedded(3)]
    decoder = Decoder(plan)
    for first, end in pairwise([0, 7, 25, LENGTH]):
        chunks = [_chunk(plan, r, first, end) for r in "ab"]
        decoder.run([*chunks, Chunk("text", StagedPrompt(plan, ()), first, end - first)], prompts)
    for request, prompt in zip("ab", prompts, strict=False):
        assert decoder.places(request) == _whole(plan, request, prompt)[0]
    assert decoder.places("text") == [list(range(LENGTH))] * N_LAYERS


def test_tokens_that_leave_become_part_of_the_mean_of_those_that_stay() -> None:
    # Every token has the same direction, so all that leave are merged into the first that stays.
    plan = Plan(merge="mean", cuts=(Cut(layer=0, keep=0.5, selector="grid"), Cut(2, 0.25, "grid")))
    length = torch.arange(1.0, 17)[:, None] * torch.ones(HIDDEN)
    chunk = Chunk("a", StagedPrompt(plan, (Span(0, 16),)), 0, 17)
    step = PruningStep(plan, prepare(plan), [chunk], {})
    states = torch.cat([length, torch.zeros(1, HIDDEN)])
    positions, hidden, residual = step.before_layer(0, torch.arange(17), states, None)
    first, rest = [at for at in range(16) if at in positions], sum(range(1, 17))
    kept = [at + 1 for at in first]
    assert hidden[0, 0] == pytest.approx((rest - sum(kept[1:])) / 9)
    assert hidden[1:-1, 0].tolist() == kept[1:]
    # The second cut weighs the first token with the nine that it stands for.
    shifted = torch.zeros_like(hidden)  # as the layers change the states of none
    positions, again, residual = step.before_layer(2, positions, hidden - shifted, shifted)
    second = [at + 1 for at in positions.tolist()[:-1]]
    assert len(second) == 4
    assert second[0] == kept[0]
    gone = set(kept[1:]) - set(second[1:])
    mean = (9 * hidden[0, 0] + sum(gone)) / (9 + len(gone))
    assert again[0, 0] + residual[0, 0] == pytest.approx(float(mean))


def test_images_keep_their_own_share_in_any_company() -> None:
    plan, prompt = PLANS["twice"], _embedded(4)
    places, _ = _whole(plan, "a", prompt)
    alone = Decoder(plan)
    alone.run([Chunk("a", StagedPrompt(plan, SPANS[:1]), 0, 20)], [prompt[:20]])
    first = [p for p in places[1] if p < 20]
    assert alone.places("a")[1] == first
    assert len([p for p in first if 3 <= p < 19]) == 8


def test_marks_between_the_tokens_of_an_image_stay() -> None:
    for name, plan in PLANS.items():
        for places in _whole(plan, "a", _embedded(9))[0]:
            assert {23, 27} <= set(places), name


def test_a_request_that_starts_anew_forgets_what_waited() -> None:
    plan, prompt = PLANS["twice"], _embedded(5)
    decoder = Decoder(plan)
    decoder.run([_chunk(plan, "a", 0, 10)], [prompt])
    assert len(decoder.waiting["a"].hidden) == 7
    decoder.seen.clear()
    decoder.run([_chunk(plan, "a", 0, LENGTH)], [prompt])
    assert decoder.places("a") == _whole(plan, "a", prompt)[0]


def test_a_chunk_inside_an_image_that_never_began_is_refused() -> None:
    plan = PLANS["twice"]
    with pytest.raises(RuntimeError, match="the tokens before it did not run here"):
        Decoder(plan).run([_chunk(plan, "a", 10, 30)], [_embedded(6)])


def test_dropped_places_are_zero_in_the_output() -> None:
    plan, prompt = PLANS["before the decoder"], _embedded(7)
    places, output = _whole(plan, "a", prompt)
    gone = sorted(set(range(LENGTH)) - set(places[-1]))
    assert len(gone) == 16 - 5 + 9 - 3
    assert output[gone].abs().sum() == 0
    assert (output[places[-1]].abs().sum(dim=1) > 0).all()


def test_the_question_decides_what_stays_and_nothing_behind_it() -> None:
    plan, prompt = PLANS["the question"], _embedded(8)
    places, _ = _whole(plan, "a", prompt)
    other, later = prompt.clone(), prompt.clone()
    other[LENGTH - 3] = -prompt[LENGTH - 3]  # the question's last token
    later[LENGTH - 2] = -prompt[LENGTH - 2]
    assert _whole(plan, "a", other)[0] != places
    assert _whole(plan, "a", later)[0] == places
