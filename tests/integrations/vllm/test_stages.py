"""What stages hold: the arithmetic that the scheduler and the model share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpcal import Cut, Plan
from tpcal.integrations.vllm.stages import Chunk, Span, StagedPrompt, StageFields

PLAN = Plan(
    cuts=(
        Cut(layer=2, keep=0.5, selector="diversity"),
        Cut(layer=4, keep=0.2, selector="diversity"),
        Cut(layer=6, keep=0.0),
    )
)
TWO = (Span(3, 10), Span(15, 4))  # of 22 tokens


def test_a_stage_holds_the_text_and_what_the_cuts_keep() -> None:
    assert [StagedPrompt(PLAN, TWO).n_held(stage, 22) for stage in range(4)] == [
        22,
        8 + 5 + 2,
        8 + 2 + 1,
        8,
    ]


@pytest.mark.parametrize(
    ("n_tokens", "held"),
    [(3, 3), (4, 3), (12, 3), (13, 8), (15, 10), (17, 10), (19, 12), (22, 15)],
)
def test_tokens_of_an_image_wait_until_it_is_complete(n_tokens: int, held: int) -> None:
    assert StagedPrompt(PLAN, TWO).n_held(1, n_tokens) == held


def test_marks_between_visual_tokens_wait_with_them_and_stay() -> None:
    marked = (Span(3, 10, marks=(4, 7)),)  # places 3..14 of 22
    assert marked[0].places.tolist() == [3, 4, 5, 6, 8, 9, 11, 12, 13, 14]
    assert [StagedPrompt(PLAN, marked).n_held(1, n) for n in (3, 4, 14, 15, 22)] == [
        3,
        3,
        3,
        10,
        17,
    ]
    assert [StagedPrompt(PLAN, marked).n_held(stage, 22) for stage in range(4)] == [22, 17, 14, 12]


def test_a_request_without_images_is_held_whole() -> None:
    assert [StagedPrompt(PLAN, ()).n_held(stage, 22) for stage in range(4)] == [22] * 4


def test_a_prompt_that_a_selector_reads_waits_for_its_last_token() -> None:
    held = [StagedPrompt(PLAN, TWO, 20).n_held(1, n) for n in (0, 3, 13, 19, 20, 22)]
    assert held == [0, 0, 0, 0, 13, 15]
    assert StagedPrompt(PLAN, TWO, 20).n_held(0, 13) == 13
    first, last = (
        Chunk("a", StagedPrompt(PLAN, TWO, 20), 0, 15),
        Chunk("a", StagedPrompt(PLAN, TWO, 20), 15, 7),
    )
    assert (first.entering, first.waiting, first.complete) == (range(0), range(15), ())
    assert (last.begin, last.entering, last.complete) == (0, range(22), TWO)
    assert not Chunk("a", StagedPrompt(PLAN, TWO, 20), 20, 1).has_visual


def test_counts_are_rounded_as_the_plan_says() -> None:
    plan = Plan(cuts=PLAN.cuts[:1], round_to=4)
    assert StagedPrompt(plan, (Span(0, 10),)).n_held(1, 10) == 8


def test_the_fields_say_where_new_tokens_are_held() -> None:
    chunks = [
        Chunk("a", StagedPrompt(PLAN, TWO), 12, 6),
        Chunk("b", StagedPrompt(PLAN, ()), 5, 1),
        Chunk("c", StagedPrompt(PLAN, TWO), 3, 5),
    ]
    fields = StageFields.of(1, chunks)
    # a: the last token of its first image brings 5 of 10, then two of text; 3 of the second wait
    assert fields.n_new.tolist() == [7, 1, 0]
    assert fields.n_before.tolist() == [3, 5, 3]
    assert fields.query_starts.tolist() == [0, 7, 8, 8]
    assert fields.lengths.tolist() == [10, 6, 3]
    assert fields.index.tolist() == [3, 4, 5, 6, 7, 8, 9, 5]
    assert fields.owner.tolist() == [0] * 7 + [1]


def test_a_chunk_knows_what_enters_and_what_waits() -> None:
    inside, last = (
        Chunk("a", StagedPrompt(PLAN, TWO), 5, 3),
        Chunk("a", StagedPrompt(PLAN, TWO), 8, 9),
    )
    assert (inside.entering, inside.waiting) == (range(3, 3), range(3, 8))
    assert (last.entering, last.waiting) == (range(3, 15), range(15, 17))
    assert (inside.complete, last.complete) == ((), TWO[:1])
    assert inside.has_visual
    assert not Chunk("a", StagedPrompt(PLAN, TWO), 13, 2).has_visual


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 21), unique=True).map(sorted), st.sampled_from((0, 20, 22)))
def test_chunks_of_any_size_hold_the_same_in_the_end(ends: list[int], together: int) -> None:
    chunks = [
        Chunk("a", StagedPrompt(PLAN, TWO, together), a, b - a)
        for a, b in pairwise([0, *ends, 22])
    ]
    for stage in range(4):
        fields = [StageFields.of(stage, [chunk]) for chunk in chunks]
        slots = np.concatenate([f.index for f in fields])
        assert slots.tolist() == list(range(StagedPrompt(PLAN, TWO).n_held(stage, 22)))
    entered = [place for chunk in chunks for place in chunk.entering]
    assert entered == list(range(22))
    assert [span for chunk in chunks for span in chunk.complete] == list(TWO)
