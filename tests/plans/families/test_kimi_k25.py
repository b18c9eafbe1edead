"""Kimi K2.5: grids of images and pooled videos, and what its latent attention caches."""

from __future__ import annotations

import torch
from mrope import BOS, VIDEO
from tiny import case

from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.families import decoder_shape, find


def test_an_image_has_its_merged_patches_and_a_video_one_step_of_them():
    model = case("kimi_k25", "sdpa").model
    family = find(model)
    image = case("kimi_k25", "sdpa").rows[1]
    ids = torch.tensor([[BOS, *[VIDEO] * 6, 40]])  # 4 frames of 4 x 6 patches, averaged
    video = {"input_ids": ids, "video_grid_thw": torch.tensor([[4, 4, 6]])}
    for inputs, wanted in ((image, [(0, 0, 2, 5), (1, 0, 4, 3)]), (video, [(0, 0, 2, 3)])):
        visual = family.visual_mask(model, inputs["input_ids"], None)
        prompt = read_prompt(visual, inputs.get("attention_mask"))
        (grids,) = with_grids(family, model, prompt, inputs).grids
        assert [(g.image, g.time, g.n_rows, g.n_cols) for g in grids] == wanted


def test_a_token_costs_what_latent_attention_caches_and_its_experts():
    shape = decoder_shape(case("kimi_k25", "sdpa").model)
    assert shape.latent == 16 + 8  # the latent, and one rotary key for all heads
    assert shape.ffn == 48 * (2 + 1)
    assert shape.head_dim == 8 + 8
