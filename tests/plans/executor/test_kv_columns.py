"""Positions that cache columns hold, by hand."""

from __future__ import annotations

import torch

from tpcal.plans.executor.kv_columns import Held, right_aligned

CPU = torch.device("cpu")


def ragged():
    """Row 0 holds 0, 4, 5 and row 1 holds 0, 2, 4, 5 of six positions; filler is on the left."""
    columns = torch.tensor([[3, 0, 4, 5], [0, 2, 4, 5]])
    valid = torch.tensor([[False, True, True, True], [True, True, True, True]])
    return Held.recent(2, 0, 0, CPU).joined(columns, valid, 6)


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


def test_a_window_forgets_columns_that_no_row_sees():
    assert ragged().within(3).positions().tolist() == [[4, 5], [4, 5]]
    assert ragged().within(5).positions()[1].tolist() == [2, 4, 5]
    assert ragged().extended(2).within(3).positions().tolist() == [[6, 7], [6, 7]]
    assert ragged().extended(1).within(3).n_held == 5  # one generated token: masks hide the rest


def test_cropping_says_which_columns_are_left():
    rest, columns = ragged().extended(2).cropped(1)
    assert columns is None
    assert (rest.n_seen, rest.n_held) == (7, 5)
    rest, columns = ragged().extended(2).cropped(4)
    assert rest.n_seen == 4
    assert rest.positions()[1].tolist() == [0, 2]
    assert columns.tolist() == [[5, 1], [0, 1]]
    assert rest.mask().tolist() == [[False, True], [True, True]]


LOG_SIZES = torch.tensor([[0.0, 0, 2, 3], [0, 4, 0, 0]])


def counted():
    """`ragged`, where the keys at positions 4 and 5 of row 0 and 2 of row 1 count several times."""
    columns = torch.tensor([[3, 0, 4, 5], [0, 2, 4, 5]])
    valid = torch.tensor([[False, True, True, True], [True, True, True, True]])
    return Held.recent(2, 0, 0, CPU).joined(columns, valid, 6, LOG_SIZES)


def test_nothing_is_added_to_columns_that_stand_for_themselves():
    assert ragged().extended(2).added() is None
    assert Held.recent(2, 4, 4, CPU).joined(torch.tensor([[0], [1]]), None, 2).added() is None
    plain = Held.recent(2, 0, 0, CPU).joined(torch.tensor([[0, 1]]), None, 2)
    assert not plain.has_mask
    assert ragged().has_mask
    assert Held(plain.index, None, 2, 0, LOG_SIZES[:1, 2:]).has_mask


def test_generated_tokens_count_once():
    held = counted()
    assert torch.equal(held.added(), LOG_SIZES)
    assert held.extended(2).added().tolist() == [[0, 0, 2, 3, 0, 0], [0, 4, 0, 0, 0, 0]]


def test_a_second_prompt_keeps_the_sizes_of_the_first_and_may_have_its_own():
    columns = torch.tensor([[1, 2], [0, 2]])
    before = [[0, 0, 2, 3, 0], [0, 4, 0, 0, 0]]
    held = counted().extended(1)
    assert held.joined(columns, None, 3).added().tolist() == [[*row, 0, 0] for row in before]
    own = torch.tensor([[6.0, 0], [0, 7]])
    after = counted().extended(1).joined(columns, None, 3, own)
    assert after.added().tolist() == [[*before[0], 6, 0], [*before[1], 0, 7]]
    plain = ragged().extended(1).joined(columns, None, 3, own)
    assert plain.added().tolist() == [[0] * 5 + [6, 0], [0] * 5 + [0, 7]]


def test_rows_take_their_sizes_with_them():
    held = counted().extended(1).selected(torch.tensor([1, 1, 0]))
    assert held.added().tolist() == [[0, 4, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 2, 3, 0]]


def test_cropping_leaves_the_sizes_of_what_is_left():
    rest, columns = counted().extended(2).cropped(1)
    assert columns is None
    assert rest.added().tolist() == [[0, 0, 2, 3, 0], [0, 4, 0, 0, 0]]
    rest, columns = counted().extended(2).cropped(3)  # positions 5, 6 and 7 go
    assert columns is not None
    assert rest.positions()[rest.mask()].tolist() == [0, 4, 0, 2, 4]
    assert rest.added()[rest.mask()].tolist() == [0, 2, 0, 4, 0]


def test_windows_and_buffers_take_the_sizes_of_their_columns():
    assert counted().within(3).added().tolist() == [[2, 3], [0, 0]]
    assert counted().within(5).added().tolist() == [[0, 2, 3], [4, 0, 0]]
    assert counted().extended(2).within(3).added() is None  # generated tokens alone
    filled = counted().extended(1).filling(7)
    assert filled.added().tolist() == [[0, 0, 0, 0, 2, 3, 0], [0, 0, 0, 4, 0, 0, 0]]
    assert counted().filling(2).added().tolist() == [[2, 3], [0, 0]]


def test_sizes_go_with_the_columns_to_another_device():
    moved = counted().extended(1).to(torch.device("meta"))
    assert moved.added().device.type == "meta"
    assert moved.added().shape == (2, 5)
    assert counted().to(CPU).added() is not None
