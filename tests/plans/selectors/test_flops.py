"""What the selectors say they compute, beside torch's own FLOP counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tpcal.plans.selectors import create, names
from tpcal.plans.selectors.base import Tokens, Work

KEY_WIDTH = 6  # of the vision tower in these tokens; such products are left out


@pytest.mark.parametrize("n_keep", [3, 20])
@pytest.mark.parametrize("name", names())
def test_flops_are_a_close_upper_bound(
    name: str, n_keep: int, make_row: Callable[..., Tokens]
) -> None:
    tokens, selector = make_row([(9, 12)]), create(name)
    assert tokens.text_valid is not None
    n_tokens, n_text = tokens.valid.shape[1], tokens.text_valid.shape[1]
    with FlopCounterMode(display=False) as counter:
        selector.merged(tokens, selector.select(tokens, torch.tensor([n_keep])))
    counted = counter.get_total_flops()
    said = selector.flops(Work(n_tokens, n_keep, n_text, tokens.hidden.shape[-1]))
    if name == "visionzip":
        counted -= 2 * n_tokens * KEY_WIDTH * int(0.15625 * n_keep)
    assert 0.6 * said <= counted <= said
