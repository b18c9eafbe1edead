"""Pruned cache layers, by hand."""

from __future__ import annotations

import pytest
import torch
from releases import skip_elsewhere
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tpcal.plans.executor.compat import tokens_to_remove
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.pruned_layers import pruned

pytestmark = pytest.mark.versions

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
    if n_gone == 0 and tokens_to_remove(0, 7):
        skip_elsewhere("crop(0) empties a cache before 5.15")
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


def sliding(window, *, recording=False):
    """A layer with a window of logical positions that was fed the prompt of `ragged`."""
    layer = pruned(DynamicSlidingWindowLayer(sliding_window=window), Held.recent(2, 0, 0, CPU))
    if recording:
        layer.activate_past_recording()
    layer.incoming = ragged()
    states = numbered(ragged().positions())
    returned = layer.update(states, states)[0]
    assert returned.shape[2] == 4  # the queries of the prompt see all of it, under their mask
    return layer


def feed(layer, n):
    for _ in range(n):
        new = torch.full((2, 1, 1, 1), float(layer.get_seq_length()))
        layer.update(new, new)
    return layer


def test_a_window_is_of_logical_positions():
    layer = sliding(3)  # the next query, at 6, sees 4 and 5 of both rows
    assert layer.held.positions().tolist() == [[4, 5], [4, 5]]
    assert layer.keys[:, 0, :, 0].tolist() == [[4, 5], [4, 5]]
    assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes
    assert (layer.get_seq_length(), layer.cumulative_length) == (6, 6)
    assert layer.is_sliding


def test_a_column_stays_while_one_row_sees_it():
    layer = sliding(5)  # sees 2, 3, 4, 5: row 0 holds 4, 5 of them and row 1 holds 2, 4, 5
    assert layer.held.positions()[1].tolist() == [2, 4, 5]
    assert layer.held.positions()[0].tolist()[1:] == [4, 5]


@pytest.mark.parametrize("window", [3, 5, 8])
def test_a_window_of_text_alone_is_as_the_unpruned_layer(window):
    layer = feed(sliding(window), 10)
    plain = feed(DynamicSlidingWindowLayer(sliding_window=window), 16)
    assert torch.equal(layer.keys, plain.keys)
    assert layer.get_mask_sizes(1) == plain.get_mask_sizes(1)
    assert layer.get_mask_sizes(4) == plain.get_mask_sizes(4)
    assert layer.held.valid is None


def test_a_full_window_can_be_cropped_only_where_the_past_is_recorded():
    if not hasattr(DynamicSlidingWindowLayer, "activate_past_recording"):
        skip_elsewhere("a window records no past before 5.15")
    layer = feed(sliding(3), 2)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        layer.crop(-1)
    layer = feed(sliding(3, recording=True), 2)
    layer.crop(-3)  # back to 5 tokens: the next query, at 5, sees 3 and 4, and 4 is held
    assert layer.get_seq_length() == layer.cumulative_length == 5
    mask = layer.held.mask()
    mask = torch.ones_like(layer.held.positions(), dtype=torch.bool) if mask is None else mask
    assert layer.keys[0, 0, :, 0][mask[0]].tolist() == [4]
    assert layer.held.positions()[0][mask[0]].tolist() == [4]


def test_the_worked_example_of_the_module_is_what_happens():
    layers = [DynamicLayer() for _ in range(4)]
    nothing = Held.recent(1, 0, 0, CPU)
    places = torch.tensor([[0, 1, 3, 5]])
    layers[2:] = [pruned(layer, nothing) for layer in layers[2:]]
    for layer in layers[:2]:
        layer.update(*[numbered(torch.arange(6)[None])] * 2)
    for layer in layers[2:]:
        layer.incoming = nothing.joined(places, None, 6)
        layer.update(*[numbered(places)] * 2)
    assert [layer.get_seq_length() for layer in layers] == [6] * 4
    assert [layer.keys.shape[2] for layer in layers] == [6, 6, 4, 4]
    for layer in layers:
        layer.update(*[numbered(torch.tensor([[6]]))] * 2)
    assert [layer.get_seq_length() for layer in layers] == [7] * 4
    assert layers[1].keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert layers[3].keys[0, 0, :, 0].tolist() == [0, 1, 3, 5, 6]
    for layer in layers:
        layer.crop(-3)
    assert [layer.get_seq_length() for layer in layers] == [4] * 4
    assert layers[3].keys[0, 0, :, 0].tolist() == [0, 1, 3]
