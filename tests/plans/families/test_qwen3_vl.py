"""Qwen3-VL: DeepStack features follow the tokens that stay; frames apart are one video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mrope import IMAGE, VIDEO
from tiny import case
from torch import Tensor

from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.families import find
from tpcal.plans.families.qwen3_vl import deepstack
from tpcal.plans.plan_records import Cut, Plan

NAMES = ["qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe"]
N_DEEP = 3
"""DeepStack adds features after this many layers."""


class Recorder:
    """What the decoder adds after each of the first layers, while a plan is applied."""

    def __init__(self, model: Any) -> None:
        self.added: list[Tensor] = []
        self._decoder = find(model).decoder(model)
        self._process = self._decoder._deepstack_process
        self._decoder._deepstack_process = self._record

    def _record(self, hidden: Tensor, *given: Any) -> Tensor:
        result = self._process(hidden, *given)
        self.added.append(result - hidden)
        return result

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._decoder._deepstack_process = self._process


def columns(ids: Tensor, real: Tensor, kept: Sequence[int]) -> list[int | None]:
    """What stands in each column of a row after a cut: a visual token's rank, or None for text."""
    found: list[int | None] = []
    rank = 0
    for token in ids[real.bool()].tolist():
        if token not in (IMAGE, VIDEO):
            found.append(None)
            continue
        if rank in kept:
            found.append(rank)
        rank += 1
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut_layer", [0, 1, 2, 3])
def test_each_token_that_stays_gets_its_own_features(name, cut_layer):
    tiny = case(name, "sdpa")
    model, inputs = tiny.model, tiny.batch(tiny.rows)
    plan = Plan((Cut(cut_layer, 0.5, "random"),))
    with apply(model, plan) as handle, Recorder(model) as seen:
        model(**inputs)
        assert handle.last is not None
        kept = handle.last.cuts[0].kept
        n_visual = handle.last.n_visual
    assert [len(row) for row in kept] == [8, 11, 0, 9]
    images = (
        find(model)
        .base(model)
        .get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    )
    first = [sum(n_visual[:row]) for row in range(4)]
    for layer in range(N_DEEP):
        features = images.deepstack_features[layer]
        if not isinstance(features, torch.Tensor):  # of each image, since transformers 5.20
            features = torch.cat(features)
        added = seen.added[layer]
        assert added.shape[1] == (37 if layer < cut_layer else 37 - 11)
        for row in range(4):
            ranks = range(n_visual[row]) if layer < cut_layer else kept[row]
            stands = columns(inputs["input_ids"][row], inputs["attention_mask"][row], ranks)
            for column, rank in enumerate(reversed(stands), start=1):
                wanted = torch.zeros(64) if rank is None else features[first[row] + rank]
                got = added[row, -column]
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
            filler = added[row, : added.shape[1] - len(stands)]
            assert not filler.any()
    assert len(seen.added) == N_DEEP


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_added_once_every_visual_token_left(name):
    tiny = case(name, "sdpa")
    with apply(tiny.model, Plan((Cut(1, 0.0),))), Recorder(tiny.model) as seen:
        tiny.model(**tiny.batch(tiny.rows))
    assert [bool(added.any()) for added in seen.added] == [True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_plan_leaves_the_decoder_its_own_deepstack(name):
    tiny = case(name, "sdpa")
    decoder = find(tiny.model).decoder(tiny.model)
    with apply(tiny.model, Plan((Cut(2, 0.5, "grid"),))):
        assert "_deepstack_process" in vars(decoder)
    assert "_deepstack_process" not in vars(decoder)


def test_features_are_dealt_by_hand():
    """Row 0: text, a, b, text; row 1: c, text, text, d. Kept: b; and c, d with no filler."""
    visual = torch.tensor([[False, True, True, False], [True, False, False, True]])
    features = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # a, b, c, d
    hidden = torch.full((2, 4, 1), 10.0)
    full = deepstack(hidden, visual, features, Survivors(None, None, (2, 2)))
    assert full[..., 0].tolist() == [[10, 11, 12, 10], [13, 10, 10, 14]]
    places = torch.tensor([[1, 0, 2, 3], [0, 1, 2, 3]])  # a is filler
    valid = torch.tensor([[False, True, True, True], [True] * 4])
    cut = deepstack(hidden, visual, features, Survivors(places, valid, (1, 2)))
    assert cut[..., 0].tolist() == [[10, 10, 12, 10], [13, 10, 10, 14]]
    assert hidden.eq(10).all()  # not changed in place


@pytest.mark.parametrize("name", [*NAMES, "glm4v", "glm4v_moe", "glm46v"])
def test_frames_between_time_stamps_are_steps_of_one_video(name):
    tiny = case(name, "sdpa")
    family = find(tiny.model)
    row = tiny.videos[0]  # three frames of 2 x 4 tokens, each with a time stamp before it
    prompt = read_prompt(family.visual_mask(tiny.model, row["input_ids"], None), None)
    (grids,) = family.grids(tiny.model, prompt, row)
    assert [(g.image, g.time, g.n_rows, g.n_cols) for g in grids] == [
        (0, 0, 2, 4),
        (0, 1, 2, 4),
        (0, 2, 2, 4),
    ]
    with apply(tiny.model, Plan((Cut(2, 0.5, "random"),))) as handle:
        tiny.model.generate(**row, max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert handle.last is not None
        assert [(g.image, g.time) for g in handle.last.grids[0]] == [(0, 0), (0, 1), (0, 2)]
        patch = handle.last.patches(0)[-1]
    assert (patch.image, patch.time) == (0, patch.token // 8)
    assert (patch.row, patch.col) == (patch.token % 8 // 4, patch.token % 4)
