"""What every selector chooses when the executor hands it images as rows of their own."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tpcal.plans.executor.choice_sets import Apart, ChoiceSet, ChoiceSets
from tpcal.plans.selectors import create, names

PROMPTS = [[(3, 4), (1, 3), (2, 5)], [], [(2, 3)]]
ALIVE = (12, 3, 10, 6)
SETS = ChoiceSets(
    (ChoiceSet(0, 20), ChoiceSet(0, 9, 12, 1), ChoiceSet(0, 11, 15, 2), ChoiceSet(2, 7)), 3
)
"""The images, of which an earlier cut left `ALIVE`."""
STARTS = (0, 12, 15, 0)
OF_PROMPT = ("n_original", "lse", "text_hidden", "text_valid", "text_keys")
LAST = ("logits", "text_attention")


@pytest.fixture
def prompts(make_row, stack):
    rows = [make_row(images, seed) for seed, images in enumerate(PROMPTS)]
    return stack(rows, garbage=float("nan"), extra=2)


def alone(tokens, at):
    """The tokens of an image, cut out of its prompt by hand."""
    one, start = SETS.sets[at], STARTS[at]
    row, part = slice(one.row, one.row + 1), slice(start, start + ALIVE[at])
    values = {}
    for f in fields(tokens):
        value = getattr(tokens, f.name)
        if isinstance(value, Tensor):
            cut = value[row] if f.name in OF_PROMPT else value[row, part]
            values[f.name] = value[row][..., part] if f.name in LAST else cut
    values["index"] = values["index"] - one.first_rank
    values["image"] = values["image"] - one.first_view
    values["n_original"] = torch.tensor([one.n_tokens])
    return replace(tokens, **values)


def test_an_image_apart_has_all_that_a_selector_may_read(prompts):
    apart = Apart(SETS, ALIVE, prompts.valid.shape[1], torch.device("cpu")).tokens(prompts)
    for at, n in enumerate(ALIVE):
        wanted = alone(prompts, at)
        for f in fields(prompts):
            value = getattr(apart, f.name)
            if isinstance(value, Tensor):
                got = value[at : at + 1]
                if f.name in LAST:
                    got = got[..., :n]
                elif f.name not in OF_PROMPT:
                    got = got[:, :n]
                torch.testing.assert_close(
                    got, getattr(wanted, f.name), rtol=0, atol=0, equal_nan=True, msg=f.name
                )
        assert not apart.valid[at, n:].any()
        assert not apart.covers[at, n:].any()
        for filler in (apart.index, apart.image, apart.grid_row, apart.grid_col):
            assert (filler[at, n:] == -1).all()
        assert (apart.grid_shape[at, n:] == -1).all()


@pytest.mark.parametrize("name", names())
def test_an_image_keeps_what_it_keeps_alone(name, prompts):
    apart = Apart(SETS, ALIVE, prompts.valid.shape[1], torch.device("cpu"))
    tokens, wanted, selector = apart.tokens(prompts), torch.tensor([5, 1, 4, 6]), create(name)
    stays = selector.select(tokens, wanted)
    merged = selector.merged(tokens, stays)
    found = apart.together(stays)
    assert found.shape == prompts.valid.shape
    assert found.sum() == wanted.sum()
    for at, one in enumerate(SETS.sets):
        image = alone(prompts, at)
        choice = selector.select(image, wanted[at : at + 1])
        part = slice(STARTS[at], STARTS[at] + ALIVE[at])
        assert found[one.row, part].tolist() == choice[0].tolist()
        if merged is not None:
            got = apart.together(merged)[one.row, part][choice[0]]
            torch.testing.assert_close(got, selector.merged(image, choice)[0][choice[0]])
