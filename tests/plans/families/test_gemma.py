"""Gemma, PaliGemma and Llama 4 under cuts: windows, blocks, prefixes, shared keys, grids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import gemma
import pytest
import tiles
import torch
from releases import require_unpruned, skip_elsewhere
from tiny import case
from torch import Tensor
from transformers import DynamicCache, ShieldGemma2Config, ShieldGemma2ForImageClassification

from tpcal.plans.cost import plan_cost
from tpcal.plans.executor import compat
from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.handle import apply, kv_bytes
from tpcal.plans.executor.prompt import ViewGrid, read_prompt
from tpcal.plans.families import decoder_shape, find, identity
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.laws.rounding import allowed, distance
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors.attention import Attention

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
UPPER, LOWER = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def grids_of(model: Any, inputs: Mapping[str, Any]) -> tuple[tuple[ViewGrid, ...], ...]:
    family = find(model)
    visual = family.visual_mask(model, inputs["input_ids"], None)
    return with_grids(family, model, read_prompt(visual, None), inputs).grids


@contextmanager
def layer_calls(model: Any) -> Iterator[list[tuple[int, Tensor | None]]]:
    """Columns and mask that each layer is called with, in order."""
    calls: list[tuple[int, Tensor | None]] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        calls.append((args[0].shape[1], kwargs["attention_mask"]))

    hooks = [
        layer.register_forward_pre_hook(before, with_kwargs=True)
        for layer in find(model).layers(model)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_every_image_is_the_same_square(name):
    tiny = case(name, "sdpa")
    (grids,) = grids_of(tiny.model, tiny.rows[1])
    assert [(g.image, g.n_rows, g.n_cols, g.n_extra_cols) for g in grids] == [
        (0, 4, 4, 0),
        (1, 4, 4, 0),
    ]
    assert grids[0].boxes()[6].tolist() == [0.5, 0.25, 0.75, 0.5]


@pytest.mark.parametrize("name", ["gemma4", "gemma4_shared"])
def test_images_of_gemma_4_have_the_size_of_their_pixels_in_generate_too(name):
    tiny = case(name, "sdpa")
    sizes = [[(3, 4)], [(2, 5), (4, 3)], [], [(3, 6)]]  # pixels by 12
    with apply(tiny.model, Plan((Cut(2, 0.5, "grid"),))) as handle:
        tiny.model(**tiny.batch(tiny.rows))
        forward = handle.last
        tiny.model.generate(**tiny.batch(tiny.rows), max_new_tokens=1)
        for report in (forward, handle.last):
            assert report is not None
            assert [[(g.n_rows, g.n_cols) for g in row] for row in report.grids] == sizes


@pytest.mark.parametrize("name", ["gemma4", "gemma4_shared"])
def test_frames_of_gemma_4_are_steps_of_a_video_in_generate_too(name):
    tiny = case(name, "sdpa")
    both = tiny.batch(tiny.videos)
    require_unpruned(lambda: tiny.model(**both))
    with apply(tiny.model, Plan((Cut(2, 0.5, "grid"),))) as handle:
        tiny.model(**both)
        forward = handle.last
        tiny.model.generate(**both, max_new_tokens=1)
        for report in (forward, handle.last):
            assert report is not None
            found = [[(g.image, g.time, g.n_rows, g.n_cols) for g in row] for row in report.grids]
            assert found == [
                [(0, time, 2, 3) for time in (0, 1)],
                [(0, time, 3, 2) for time in (0, 1, 2)],
            ]


def test_the_tokens_between_llama_4s_tiles_tell_how_they_lie():
    tiny = case("llama4", "sdpa")
    found = [[(g.image, g.region) for g in grids_of(tiny.model, row)[0]] for row in tiny.rows]
    assert found == [
        [(0, WHOLE)],  # 24 x 24 pixels, one tile
        [
            (0, LEFT),  # 24 x 48
            (0, RIGHT),
            (0, WHOLE),
            (1, UPPER),  # 48 x 24
            (1, LOWER),
            (1, WHOLE),
        ],
        [],
        [
            *[(0, (x / 2, y / 2, (x + 1) / 2, (y + 1) / 2)) for y in (0, 1) for x in (0, 1)],
            (0, WHOLE),
        ],
    ]


def test_images_of_llama_4_side_by_side_are_apart():
    from tiny.llama4 import image

    ids = torch.tensor([[tiles.BOS, *image(1, 2), *image(1, 1), *image(1, 1), 40]])
    (grids,) = grids_of(case("llama4", "sdpa").model, {"input_ids": ids})
    assert [grid.image for grid in grids] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_after_a_cut_windows_count_positions_and_images_see_themselves_both_ways(attn):
    tiny = case("gemma3", attn)
    row = tiny.rows[3]  # 33 tokens, the image at 4..19
    assert row["token_type_ids"][0].nonzero()[:, 0].tolist() == list(range(4, 20))
    with (
        apply(tiny.model, Plan((Cut(1, 0.5, "random"),))) as handle,
        layer_calls(tiny.model) as calls,
    ):
        tiny.model(**row)
    assert handle.last is not None
    kept = [4 + rank for rank in handle.last.cuts[0].kept[0]]
    places = [*range(4), *kept, *range(20, 33)]
    for layer, window in ((1, gemma.NARROW), (2, 99), (3, gemma.NARROW), (7, 99)):
        n_columns, mask = calls[layer]
        assert n_columns == len(places) == 25
        wanted = [
            [
                (key <= query or {key, query} <= set(kept)) and query - key < window
                for key in places
            ]
            for query in places
        ]
        assert mask is not None
        sees = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
        assert sees.tolist() == wanted


def test_after_a_cut_the_prefix_sees_all_of_itself_and_the_answer_what_came_before():
    tiny = case("paligemma", "eager")
    words = torch.tensor([[50, 51]])
    inputs = tiny.extended(tiny.rows[0], words)  # 24 tokens and an answer of 2
    with (
        apply(tiny.model, Plan((Cut(1, 0.25, "random"),))),
        layer_calls(tiny.model) as calls,
    ):
        tiny.model(**inputs)
    n_columns, mask = calls[1]
    assert n_columns == 24 - 12 + 2
    assert mask is not None
    assert (mask[0, 0] == 0).tolist() == [
        *[[True] * 12 + [False] * 2] * 12,
        [True] * 13 + [False],
        [True] * 14,
    ]


def test_shared_layers_see_the_keys_of_the_layer_they_read():
    tiny = case("gemma4_shared", "eager")
    model, family = tiny.model, find(tiny.model)
    assert [family.key_source(model, at) for at in range(8)] == [0, 1, 2, 3, 3, 2, 3, 2]
    assert family.cut_layers(model) == range(4)
    row = tiny.rows[0]  # 22 tokens, 12 of them visual
    # generate goes on with the last token only, since transformers 5.21
    last = 1 if "logits_to_keep" in signature(family.decoder(model).forward).parameters else 16
    for n_logits, n_last in ((0, 16), (1, last)):
        with apply(model, Plan((Cut(3, 0.5, "random"),))), layer_calls(model) as calls:
            out = model(**row, logits_to_keep=n_logits)
        masks = [mask for _, mask in calls]
        shapes = [None if mask is None else tuple(mask.shape[2:]) for mask in masks]
        assert shapes == [
            *[(22, 22)] * 3,
            (16, 16),
            (n_last, 16),
            (n_last, 22),
            (n_last, 16),
            (n_last, 22),
        ]
        assert out.logits.shape[1] == (n_logits or 22)


def test_a_cut_among_shared_layers_is_refused():
    with pytest.raises(Exception, match=r"cuts\[0\]\.layer must be in 0\.\.3 .*; got 5\."):
        apply(case("gemma4_shared", "sdpa").model, Plan((Cut(5, 0.5, "random"),)))


@pytest.mark.parametrize(
    "name", ["gemma3", "gemma4", "gemma4_shared", "paligemma2", "llama4", "cohere2_vision"]
)
def test_decoding_far_beyond_the_window_equals_the_reference(name):
    trial = Trial(case(name, "sdpa"))
    n_tokens = gemma.NARROW + 8
    inputs = trial.case.batch(trial.case.rows[:2])
    with apply(trial.model, trial.plans["content"]) as handle:
        found = trial.generate(inputs, n_tokens)
    assert handle.last is not None
    hidden = hidden_tokens(trial.visual(inputs), handle.last.cuts, trial.n_layers)
    with hiding(trial.model, hidden):
        wanted = trial.generate(inputs, n_tokens, use_cache=False)
    if not torch.equal(found, wanted):
        cached, anew = (trial.generate(inputs, n_tokens, use_cache=use) for use in (True, False))
        if not torch.equal(cached, anew):
            skip_elsewhere("the unpruned model answers otherwise without a cache")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["paligemma2", "gemma4"])
def test_logits_are_bounded_as_the_model_bounds_them(name):
    tiny = case(name, "eager")
    model, family, row = tiny.model, find(tiny.model), tiny.rows[0]
    out = model(**row, output_hidden_states=True)
    different = distance(family.logits(model, out.hidden_states[-1]), out.logits)
    assert different <= allowed(model, lambda: model(**row).logits)
    assert out.logits.abs().max() < 10


def test_scores_are_bent_as_the_kernel_bends_them(monkeypatch):
    tiny = case("paligemma2", "eager")
    row, seen = tiny.rows[0], []
    select = Attention.select
    monkeypatch.setattr(
        Attention, "select", lambda *given: seen.append(given[1]) or select(*given)
    )
    with apply(tiny.model, Plan((Cut(3, 0.5, "attention"),))):
        tiny.model(**row)
    weights = tiny.model(**row, output_attentions=True).attentions[2][0, :, -1]
    visual = row["input_ids"][0] == tiles.IMAGE
    (tokens,) = seen
    found = (tokens.logits - tokens.lse[..., None]).exp()[0]
    torch.testing.assert_close(found, weights[:, visual], atol=1e-6, rtol=1e-4)


def test_positions_of_paligemma_start_at_1():
    family = find(case("paligemma", "sdpa").model)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    made = family.numbered({"attention_mask": mask})["position_ids"]
    assert made[mask.bool()].tolist() == [1, 2, 1, 2, 3, 4]
    given = torch.tensor([[3, 4]])
    assert (
        family.numbered({"attention_mask": mask, "position_ids": given})["position_ids"] is given
    )


@pytest.mark.parametrize(
    ("name", "real", "stated"), [("gemma3", 32512, 36352), ("gemma4", 31232, 31232)]
)
def test_bytes_of_pruned_windows_are_an_upper_bound(name: str, real: int, stated: int) -> None:
    one, plan = case(name, "sdpa"), Plan((Cut(2, 0.25, "grid"),), scope="image")
    kv = DynamicCache(config=one.model.config)
    with apply(one.model, plan) as handle:
        one.model(**one.rows[0], **{compat.CACHE_NAME: kv}, use_cache=True)
    assert handle.last is not None
    (n_visual,) = handle.last.n_visual
    n_text = one.rows[0]["input_ids"].shape[1] - n_visual
    cost = plan_cost(plan, decoder_shape(one.model), n_visual, n_text)
    assert (sum(kv_bytes(kv)), cost.kv_bytes) == (real, stated)


def test_bytes_of_wider_heads_are_more_than_stated() -> None:
    one = case("gemma4_shared", "sdpa")
    kv = DynamicCache(config=one.model.config)
    one.model(**one.rows[0], **{compat.CACHE_NAME: kv}, use_cache=True)
    n_text = one.rows[0]["input_ids"].shape[1]
    cost = plan_cost(Plan(()), decoder_shape(one.model), 0, n_text)
    assert (sum(kv_bytes(kv)), cost.kv_bytes) == (28160, 22528)


def test_the_ffn_counts_the_experts_that_a_token_visits():
    # Llama 4: every second layer has one shared and one chosen expert of 48, the others 128.
    assert decoder_shape(case("llama4", "sdpa").model).ffn == (4 * 2 * 48 + 4 * 128) // 8
    assert decoder_shape(case("gemma4", "sdpa").model).ffn == 128 + 2 * 32


def test_layers_of_different_width_are_part_of_a_models_identity():
    model = case("gemma4", "sdpa").model
    mine, wider = identity(model), copy.deepcopy(model.config)
    if hasattr(wider.text_config, "per_layer_config"):
        wider.text_config.per_layer_config = {2: {"head_dim": 48, "num_key_value_heads": 1}}
    else:  # before transformers 5.15
        wider.text_config.global_head_dim = 48
    config, model.config = model.config, wider
    try:
        assert identity(model).fingerprint != mine.fingerprint
    finally:
        model.config = config
    plan = Plan((Cut(2, 0.5, "grid"),), model=mine)
    apply(model, plan).remove()


def test_shieldgemma_runs_the_plan_of_the_model_inside():
    inner = case("gemma3", "sdpa")
    config = ShieldGemma2Config(
        **inner.model.config.to_dict(), yes_token_index=40, no_token_index=50
    )
    shield: Any = ShieldGemma2ForImageClassification._from_config(config).eval()
    shield.model.load_state_dict(inner.model.state_dict())
    plan, row = Plan((Cut(2, 0.5, "visionzip"), Cut(5, 0.0))), inner.rows[0]
    with apply(inner.model, plan):
        wanted = inner.model(**row).logits[:, -1, [40, 50]]
    plain = shield(**row).logits
    most = allowed(inner.model, lambda: inner.model(**row).logits)
    with apply(shield, plan) as handle:
        assert distance(shield(**row).logits, wanted) <= most
    assert handle.last is not None
    assert [len(cut.kept[0]) for cut in handle.last.cuts] == [8, 0]
    assert distance(plain, wanted) > 100 * most
