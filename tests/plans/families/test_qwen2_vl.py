"""Qwen2-VL and its relatives: grids of images of any size, M-RoPE under cuts, decode positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from mrope import IMAGE
from releases import skip_elsewhere
from tiny import case
from torch import Tensor

from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import ViewGrid, read_prompt
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.images import encoded
from tpcal.plans.plan_records import Cut, Plan

HALF = Plan((Cut(2, 0.5, "random"), Cut(5, 0.25, "grid")))
SAME_GRIDS = ["qwen2_vl", "qwen2_5_vl", "paddleocr_vl"]


def places(grids: tuple[ViewGrid, ...]) -> list[tuple[int, int, int, int]]:
    """Image, step, row and column of every visual token of a prompt."""
    return [
        (grid.image, grid.time, row, col)
        for grid in grids
        for row, col in zip(grid.row.tolist(), grid.col.tolist(), strict=True)
    ]


def rectangle(image: int, n_rows: int, n_cols: int, time: int = 0) -> list[tuple[int, ...]]:
    return [(image, time, row, col) for row in range(n_rows) for col in range(n_cols)]


def grids_of(model: Any, inputs: Mapping[str, Any]) -> tuple[tuple[ViewGrid, ...], ...]:
    family = find(model)
    visual = family.visual_mask(model, inputs["input_ids"], None)
    prompt = read_prompt(visual, inputs.get("attention_mask"))
    return with_grids(family, model, prompt, inputs).grids


@pytest.mark.parametrize("name", SAME_GRIDS)
def test_tokens_stand_where_the_merged_patches_stood(name):
    tiny = case(name, "sdpa")
    row = tiny.rows[1]  # 4 x 10 and 8 x 6 patches, merged two by two
    assert row["image_grid_thw"].tolist() == [[1, 4, 10], [1, 8, 6]]
    (grids,) = grids_of(tiny.model, row)
    assert places(grids) == rectangle(0, 2, 5) + rectangle(1, 4, 3)
    assert (grids[0].n_rows, grids[0].n_cols, grids[0].n_extra_cols) == (2, 5, 0)
    # token 7 of the first image is row 1, column 2: the third of five columns, the lower half
    assert grids[0].boxes()[7].tolist() == pytest.approx([0.4, 0.5, 0.6, 1.0])


@pytest.mark.parametrize("name", SAME_GRIDS)
def test_a_batch_deals_the_images_to_the_rows_they_belong_to(name):
    tiny = case(name, "sdpa")
    for side in ("left", "right"):
        grids = grids_of(tiny.model, tiny.batch(tiny.rows, side))
        assert [places(row) for row in grids] == [
            rectangle(0, 4, 4),
            rectangle(0, 2, 5) + rectangle(1, 4, 3),
            [],
            rectangle(0, 3, 6),
        ]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_every_step_of_a_video_is_a_view(name):
    tiny = case(name, "sdpa")
    grids = grids_of(tiny.model, tiny.batch(tiny.videos))
    assert places(grids[0]) == [p for t in range(3) for p in rectangle(0, 2, 4, t)]
    video = [p for t in range(2) for p in rectangle(1, 2, 3, t)]
    assert places(grids[1]) == rectangle(0, 3, 3) + video
    assert [grid.time for grid in grids[1]] == [0, 0, 1]


@pytest.mark.parametrize("name", SAME_GRIDS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 3}])
def test_generate_has_the_grids_of_a_forward_pass(name, options):
    """Also where it repeats prompts, and though it hands on no patch grids."""
    tiny = case(name, "sdpa")
    inputs = tiny.batch(tiny.rows)
    wanted = [places(row) for row in grids_of(tiny.model, inputs)]
    n_copies = max(options.values(), default=1)
    sample = "num_return_sequences" in options
    with apply(tiny.model, HALF) as handle:
        tiny.model.generate(
            **inputs, **options, max_new_tokens=2, do_sample=sample, pad_token_id=0
        )
        assert handle.last is not None
        found = [places(row) for row in handle.last.grids]
    assert found == [row for row in wanted for _ in range(n_copies)]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_positions_tell_the_grids_where_patch_grids_do_not(name):
    """A later turn may come with the patch grids of the whole conversation, or with none."""
    tiny = case(name, "sdpa")
    rows = tiny.rows
    inputs = tiny.batch(rows)
    wanted = [places(row) for row in grids_of(tiny.model, inputs)]
    numbered = {**inputs, "position_ids": tiny.numbered(inputs)}
    without = {k: v for k, v in numbered.items() if k != "image_grid_thw"}
    assert [places(row) for row in grids_of(tiny.model, without)] == wanted
    earlier = torch.cat([torch.tensor([[1, 12, 14]]), inputs["image_grid_thw"]])
    longer = {**numbered, "image_grid_thw": earlier}
    assert [places(row) for row in grids_of(tiny.model, longer)] == wanted


def test_positions_tell_the_steps_of_a_video_even_where_time_stands_still():
    tiny = case("qwen2_5_vl", "sdpa")
    inputs = dict(tiny.batch(tiny.videos))
    inputs["second_per_grid_ts"] = torch.zeros(2)  # every step has the same time
    positions = tiny.numbered(inputs)
    wanted = [places(row) for row in grids_of(tiny.model, inputs)]
    left = {k: v for k, v in inputs.items() if "grid" not in k}
    found = grids_of(tiny.model, {**left, "position_ids": positions})
    assert [places(row) for row in found] == wanted


def test_a_single_row_of_tokens_is_a_grid_too():
    """Where row and column give no sign between steps but the column's return."""
    visual = torch.tensor([[False, *[True] * 6, False]])
    prompt = read_prompt(visual, None)
    rows = torch.tensor([0, 1, 1, 1, 1, 1, 1, 4])
    cols = torch.tensor([0, 1, 2, 3, 1, 2, 3, 4])
    positions = torch.stack([rows, rows, cols])[:, None]
    tiny = case("qwen2_vl", "sdpa")
    ids = torch.where(visual, IMAGE, 20)
    inputs = {"input_ids": ids, "position_ids": positions}
    (grids,) = find(tiny.model).grids(tiny.model, prompt, inputs)
    assert places(grids) == rectangle(0, 1, 3) + rectangle(0, 1, 3, time=1)


# ---- M-RoPE ----------------------------------------------------------------------------------

# A prompt of 3 words after <bos>, <start>, 4 x 4 image tokens, <end>, 4 words: text counts on by
# one, the image stands at 5, and text goes on 4 positions (its longer side) later, at 9.
BEFORE = [(p, p, p) for p in range(5)]
PICTURE = [(5, 5 + row, 5 + col) for row in range(4) for col in range(4)]
AFTER = [(p, p, p) for p in range(9, 14)]
NEXT = 14
"""Position of the first token after the prompt."""


def table(triples: list[tuple[int, int, int]], axes: str, theta: float) -> tuple[Tensor, Tensor]:
    """[n, 16] cosines and sines of (time, row, column) positions.

    Args:
        triples: Positions.
        axes: Which position turns each of the 8 frequencies.
        theta: Base of the frequencies.
    """
    angles = [
        [
            dict(zip("thw", triple, strict=True))[axis] / theta ** (j / 8)
            for j, axis in enumerate(axes)
        ]
        for triple in triples
    ]
    angle = torch.tensor(angles, dtype=torch.float64).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


@contextmanager
def rotary_tables(model: Any) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """The cosines and sines that each layer gets, by layer; hooks come after the executor's."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, at=at: seen.__setitem__(
                at, _merged(kwargs["position_embeddings"])
            ),
            with_kwargs=True,
        )
        for at, layer in enumerate(find(model).layers(model))
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _merged(tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The tables of Qwen2-VL for all axes, [B, S, d]; before transformers 5.17, one for each."""
    if tables[0].ndim == 3:
        return tables
    axes = ["thw".index(axis) for axis in 2 * "tthhhwww"]
    cos, sin = (
        torch.stack([table[axis, ..., at] for at, axis in enumerate(axes)], dim=-1)
        for table in tables
    )
    return cos, sin


# Qwen2-VL turns frequencies in three blocks (2 for time, 3 for rows, 3 for columns); Qwen3-VL
# deals them in turn: time, row, column, time, …
ROTARY = [
    ("qwen2_vl", "tthhhwww", 1e6),
    ("qwen2_5_vl", "tthhhwww", 1e6),
    ("qwen3_vl", "thwthwth", 5e5),
    ("qwen3_vl_moe", "thwthwth", 5e5),
]


@pytest.mark.parametrize(("name", "axes", "theta"), ROTARY)
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_that_stay_keep_their_three_positions(name, axes, theta, padded):
    tiny = case(name, "sdpa")
    inputs = tiny.batch(tiny.rows[:2] if padded else tiny.rows[:1])
    with apply(tiny.model, HALF) as handle, rotary_tables(tiny.model) as seen:
        tiny.model(**inputs)
        assert handle.last is not None
        cuts = handle.last.cuts
    for layer, kept in ((1, range(16)), (2, cuts[0].kept[0]), (7, cuts[1].kept[0])):
        triples = [*BEFORE, *(PICTURE[rank] for rank in kept), *AFTER]
        wanted = table(triples, axes, theta)
        for mine, theirs in zip(seen[layer], wanted, strict=True):
            got = mine[0, -len(triples) :]  # survivors stand on the right
            torch.testing.assert_close(got, theirs, atol=1e-5, rtol=0)
    assert len(cuts[0].kept[0]) == 8
    assert len(cuts[1].kept[0]) == 4


@pytest.mark.parametrize(("name", "axes", "theta"), ROTARY)
@pytest.mark.parametrize("through", ["generate", "forward"])
def test_decoding_goes_on_behind_the_image(name, axes, theta, through):
    tiny = case(name, "sdpa")
    inputs = dict(tiny.rows[0])
    tables = []
    with apply(tiny.model, HALF), rotary_tables(tiny.model) as seen:
        if through == "generate":
            tiny.model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
            tables.append(dict(seen))
        else:
            cache = tiny.model(**inputs, use_cache=True).past_key_values
            assert tiny.model.model.rope_deltas.tolist() == [[NEXT - 26]]  # of 26 tokens
            for _ in range(2):
                tiny.model(input_ids=torch.tensor([[20]]), past_key_values=cache, use_cache=True)
                tables.append(dict(seen))
    for step, found in zip((1, 0), reversed(tables), strict=False):
        at = NEXT + step
        wanted = table([(at, at, at)], axes, theta)
        for layer in (0, 3, 7):
            for mine, theirs in zip(found[layer], wanted, strict=True):
                torch.testing.assert_close(mine[0], theirs, atol=1e-5, rtol=0)


def test_video_time_runs_in_real_seconds_under_a_cut():
    """Qwen2.5-VL: 4 positions a second; the second video has half a second between steps."""
    tiny = case("qwen2_5_vl", "sdpa")
    second = tiny.videos[1]  # <bos> 2 words <start> 3 x 3 <end> 2 words <start> 2 x 2 x 3 <end> 5
    if int(tiny.numbered(second)[0, 0, 23]) != 13:  # of the second step
        skip_elsewhere("it numbers half a second as none")
    text = [(p, p, p) for p in range(4)]
    image = [(4, 4 + row, 4 + col) for row in range(3) for col in range(3)]
    between = [(p, p, p) for p in range(7, 11)]
    video = [
        (11 + 2 * t, 11 + row, 11 + col) for t in range(2) for row in range(2) for col in range(3)
    ]
    after = [(p, p, p) for p in range(14, 20)]
    with apply(tiny.model, HALF) as handle, rotary_tables(tiny.model) as seen:
        tiny.model(**second)
        assert handle.last is not None
        kept = handle.last.cuts[0].kept[0]
    triples = [
        *text,
        *(image[r] for r in kept if r < 9),
        *between,
        *(video[r - 9] for r in kept if r >= 9),
        *after,
    ]
    for mine, theirs in zip(seen[3], table(triples, "tthhhwww", 1e6), strict=True):
        torch.testing.assert_close(mine[0], theirs, atol=1e-5, rtol=0)


# ---- what else -------------------------------------------------------------------------------


def test_features_encoded_before_carry_their_grids():
    tiny = case("qwen2_vl", "sdpa")
    base, row = tiny.model.model, tiny.rows[1]
    with apply(tiny.model, HALF) as handle:
        image = base.get_image_features(row["pixel_values"], row["image_grid_thw"])
        given = encoded.arguments({"mm_encoder_outputs": {"image": image}})
        assert given["image_grid_thw"].tolist() == row["image_grid_thw"].tolist()
        assert handle.last is None
    assert "get_image_features" not in vars(base)


@pytest.mark.parametrize(
    ("name", "ffn"),
    [("qwen2_vl", 128), ("paddleocr_vl", 128), ("qwen3_vl", 128), ("qwen3_vl_moe", 2 * 48)],
)
def test_the_width_of_experts_is_that_of_those_a_token_visits(name, ffn):
    shape = decoder_shape(case(name, "sdpa").model)
    assert (shape.n_layers, shape.hidden, shape.ffn, shape.head_dim) == (8, 64, ffn, 16)
