"""The tokens that cuts leave, by hand."""

from __future__ import annotations

import torch

from tpcal.plans.executor.prompt import read_prompt
from tpcal.plans.executor.survivors import Survivors, columns_of, narrowed, ranks

VISUAL = torch.tensor([[False, True, True, True, True, False]] * 2)
PROMPT = read_prompt(VISUAL, None)
WHOLE = Survivors(None, None, (4, 4))


def cut(survivors, kept):
    """The survivors, and the columns to gather, of a cut that keeps these ranks in each row."""
    columns, valid = columns_of(survivors.take(VISUAL), max(survivors.n_visual))
    index = ranks(PROMPT, survivors, columns, valid)
    stays = torch.stack([torch.isin(r, torch.tensor(k)) for r, k in zip(index, kept, strict=True)])
    return narrowed(PROMPT, survivors, columns, stays, [len(k) for k in kept])


def test_the_example_of_the_module_is_what_happens():
    left, order = cut(WHOLE, [[0, 2], [1]])
    assert left.places.tolist() == [[0, 1, 3, 5], [4, 0, 2, 5]]
    assert left.valid.tolist() == [[True] * 4, [False, True, True, True]]
    assert left.n_visual == (2, 1)
    assert order is left.places  # before a first cut, columns are places


def test_a_second_cut_counts_columns_of_the_first_and_names_places_of_the_pass():
    first, _ = cut(WHOLE, [[0, 2], [1]])
    left, order = cut(first, [[2], [1]])
    assert left.places.tolist() == [[0, 3, 5], [0, 2, 5]]
    assert left.valid is None
    assert order.tolist() == [[0, 2, 3], [1, 2, 3]]


def test_padding_leaves_with_the_first_cut():
    mask = torch.tensor([[1] * 6, [0] + [1] * 5])
    prompt = read_prompt(VISUAL, mask)
    columns, valid = columns_of(prompt.visual, 4)
    left, _ = narrowed(prompt, Survivors(None, None, prompt.n_visual), columns, valid, (4, 4))
    assert left.places[1, 1:].tolist() == [1, 2, 3, 4, 5]
    assert left.valid[1].tolist() == [False] + [True] * 5


def test_a_mask_by_place_becomes_one_by_column_that_is_false_on_filler():
    left, _ = cut(WHOLE, [[0, 2], [1]])
    assert left.take(VISUAL).tolist() == [[False, True, True, False], [False, False, True, False]]
    assert WHOLE.take(VISUAL) is VISUAL


def test_ranks_are_those_of_the_prompt_and_minus_one_on_filler():
    left, _ = cut(WHOLE, [[0, 2], [1]])
    columns, valid = columns_of(left.take(VISUAL), 2)
    assert ranks(PROMPT, left, columns, valid).tolist() == [[0, 2], [1, -1]]
