"""Granite's models: tiles made smaller, features added between layers, layers without cuts."""

from __future__ import annotations

import pytest
import torch
from tiny import case

from tpcal.plans.errors import FitError
from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut, Plan


def test_an_image_is_an_overview_and_its_tiles_without_padding():
    tiny = case("granite4_vision", "sdpa")
    row = tiny.rows[1]
    assert row["image_sizes"].tolist() == [[40, 16], [16, 16]]
    family = find(tiny.model)
    visual = family.visual_mask(tiny.model, row["input_ids"], None)
    prompt = read_prompt(visual, row["attention_mask"])
    (grids,) = with_grids(family, tiny.model, prompt, row).grids
    assert [(g.image, g.n_rows, g.n_cols, g.n_extra_cols) for g in grids] == [
        # 4 x 4 patches of a tile become 2 x 2; 40 x 16 fills 5 of the 6 rows of 48 x 16
        (0, 2, 2, 0),
        (0, 6, 3, 1),
        # 16 x 16 fills 2 of the 4 columns of 16 x 32
        (1, 2, 2, 0),
        (1, 2, 3, 1),
    ]


def test_generate_knows_the_sizes_of_the_images():
    tiny = case("granite4_vision", "sdpa")
    inputs = tiny.batch(tiny.rows)
    plan = Plan((Cut(4, 0.5, "grid"),))
    with apply(tiny.model, plan) as handle:
        tiny.model(**inputs)
        assert handle.last is not None
        wanted = [[(g.image, g.n_rows, g.n_cols) for g in row] for row in handle.last.grids]
        tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        got = [[(g.image, g.n_rows, g.n_cols) for g in row] for row in handle.last.grids]
    assert got == wanted


@pytest.mark.parametrize("layer", [0, 2])
def test_a_cut_before_the_last_layer_with_new_features_is_refused(layer):
    model = case("granite4_vision", "sdpa").model
    wanted = rf"cuts\[0\]\.layer must be in 3\.\.7 for Granite4VisionFor\w+; got {layer}\."
    with pytest.raises(FitError, match=wanted):
        apply(model, Plan((Cut(layer, 0.0),)))


def test_features_added_between_layers_reach_the_tokens_they_belong_to():
    """They matter behind a cut too, and the decoder is as before once the plan is removed."""
    tiny = case("granite_docling", "sdpa")
    row = tiny.rows[1]
    plan = Plan((Cut(1, 0.25, "random"),))

    def logits() -> torch.Tensor:
        return tiny.model(**row).logits[:, -1]

    with apply(tiny.model, plan):
        before = logits()
        decoder = tiny.model.get_decoder()
        attached = decoder._deepstack_process
        decoder._deepstack_process = lambda hidden, visual, features: hidden
        without = logits()
        decoder._deepstack_process = attached
        again = logits()
    assert torch.equal(before, again)
    assert (before - without).abs().max() > 0.01
    assert "_deepstack_process" not in vars(decoder)
