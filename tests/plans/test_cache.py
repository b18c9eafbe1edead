"""Held positions and pruned cache layers, by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tpcal.plans.cache import Held, cache_layer, check_cache, kv_bytes, pruned, right_aligned
from tpcal.plans.errors import UsageError

CPU = torch.device("cpu")


def numbered(positions):
    """[B, 1, K, 1] states that carry their logical position."""
    return positions.float()[:, None, :, None]


def ragged():
    """Row 0 holds 0, 4, 5 and row 1 holds 0, 2, 4, 5 of six positions; filler is on the left."""
    columns = torch.tensor([[3, 0, 4, 5], [0, 2, 4, 5]])
    valid = torch.tensor([[False, True, True, True], [True, True, True, True]])
    return Held.recent(2, 0, 0, CPU).joined(columns, valid, 6)


def layer_with(held):
    layer = pruned(DynamicLayer(), held)
    states = numbered(held.positions())
    layer.held = Held.recent(2, 0, 0, CPU)
    layer.incoming = held
    layer.update(states, states)
    return layer


def test_right_aligned_puts_filler_on_the_left_and_keeps_the_order():
    stays = torch.tensor([[True, False, True, False], [False, True, False, False]])
    columns = right_aligned(stays, 2)
    assert columns[0].tolist() == [0, 2]
    assert columns[1, 1] == 1


def test_positions_are_the_kept_ones_and_then_all_that_came_later():
    held = ragged().extended(2)
    assert held.positions()[1].tolist() == [0, 2, 4, 5, 6, 7]
    assert held.mask().tolist() == [[False] + [True] * 5, [True] * 6]
    assert (held.n_seen, held.n_held) == (8, 6)


def test_a_second_prompt_is_joined_at_its_logical_positions():
    held = ragged().extended(1).joined(torch.tensor([[1, 2], [0, 2]]), None, 3)
    assert held.positions().tolist()[0][1:] == [0, 4, 5, 6, 8, 9]
    assert held.positions().tolist()[1] == [0, 2, 4, 5, 6, 7, 9]
    assert held.mask()[0].tolist() == [False] + [True] * 6
    assert held.n_seen == 10


def test_layers_of_a_stage_share_what_follows():
    held = ragged()
    rows = torch.tensor([1, 0])
    assert held.extended(1) is held.extended(1)
    assert held.selected(rows) is held.selected(rows)
    assert held.positions() is held.positions()


def test_a_pruned_layer_reports_the_tokens_seen():
    layer = layer_with(ragged())
    assert layer.get_seq_length() == 6
    assert layer.get_mask_sizes(2) == (8, 0)
    assert layer.keys.shape[2] == 4
    new = torch.full((2, 1, 1, 1), 6.0)
    keys, _ = layer.update(new, new)
    assert layer.get_seq_length() == 7
    assert keys.shape[2] == 5


@pytest.mark.parametrize("n_gone", range(8))
def test_crop_forgets_logical_tokens_whether_held_or_not(n_gone):
    layer = layer_with(ragged())
    new = torch.full((2, 1, 1, 1), 6.0)
    layer.update(new, new)
    layer.crop(-n_gone)
    assert layer.get_seq_length() == 7 - n_gone
    left = [[p for p in row if p < 7 - n_gone] for row in ([0, 4, 5, 6], [0, 2, 4, 5, 6])]
    mask = layer.held.mask()
    mask = torch.ones_like(layer.held.positions(), dtype=torch.bool) if mask is None else mask
    for row in range(2):
        assert layer.keys[row, 0, :, 0][mask[row]].tolist() == left[row]
        assert layer.held.positions()[row][mask[row]].tolist() == left[row]
    assert layer.keys.shape == layer.values.shape


def test_rows_move_with_their_positions():
    layer = layer_with(ragged())
    layer.reorder_cache(torch.tensor([1, 1, 0]))
    assert layer.held.positions()[0].tolist() == [0, 2, 4, 5]
    assert layer.keys[2, 0, 1:, 0].tolist() == layer.held.positions()[2, 1:].tolist() == [0, 4, 5]
    layer.batch_select_indices(torch.tensor([2, 0]))
    layer.batch_repeat_interleave(2)
    assert layer.keys.shape[0] == layer.held.positions().shape[0] == 4
    assert layer.held.mask()[:, 0].tolist() == [False, False, True, True]


def test_reset_forgets_everything():
    layer = layer_with(ragged())
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.keys is None


def test_what_a_failed_pass_left_is_not_believed():
    layer = layer_with(ragged())
    layer.incoming = ragged().extended(5)
    new = torch.full((2, 1, 1, 1), 6.0)
    layer.update(new, new)
    assert layer.get_seq_length() == 7


def test_layers_are_made_where_the_cache_makes_them_lazily():
    cache = DynamicCache()
    assert isinstance(cache_layer(cache, 3), DynamicLayer)
    assert len(cache.layers) == 4
    assert cache_layer(None, 3) is None


def test_kv_bytes_counts_keys_and_values_of_every_layer():
    cache = DynamicCache()
    states = torch.zeros(2, 3, 5, 7)
    cache.update(states, states, 0)
    cache_layer(cache, 1)
    assert kv_bytes(cache) == [2 * states.nbytes, 0]


def test_offloaded_caches_are_refused():
    cache = DynamicCache()
    check_cache(cache)
    check_cache(None)
    cache.offloading = True
    with pytest.raises(UsageError, match="got an offloaded cache"):
        check_cache(cache)
