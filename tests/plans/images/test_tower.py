"""The layer of a vision tower whose attention is read."""

from __future__ import annotations

import pytest
import torch

from tpcal.plans.images.tower import tower_of


@pytest.mark.parametrize(
    ("layer", "found"), [(-1, 3), (-2, 2), (-4, 0), (4, 3), (1, 0), ([-4, -3], 1), ((2, -1), 3)]
)
def test_the_layer_is_that_of_the_hidden_states_the_projector_reads(layer, found):
    layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(4))
    for part in layers:
        part.self_attn = torch.nn.Module()
    tower = torch.nn.Module()
    tower.encoder = torch.nn.Module()
    tower.encoder.layers = layers
    assert tower_of(tower, layer).attention is layers[found].self_attn
    assert tower_of(tower, 0) is None  # the embedding
