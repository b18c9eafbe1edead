"""The numbers that the executor tells the selectors are those of the tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors.base import read_counts
from tpcal.plans.selectors.cdpruner import Cdpruner

ROWS = [prompt(2, 0, 3, 5, seed=1), prompt(7, seed=2), prompt(3, 4, seed=3)]


@pytest.mark.parametrize("scope", ["prompt", "image"])
def test_the_numbers_of_a_cut_are_those_of_the_tensors(scope, monkeypatch):
    seen, original = [], Cdpruner.select
    monkeypatch.setattr(
        Cdpruner,
        "select",
        lambda self, tokens, n: seen.append((tokens, n)) or original(self, tokens, n),
    )
    cuts = (Cut(0, 0.7, "cdpruner"), Cut(1, 0.4, "cdpruner"))
    model = tiny_llava()
    with torch.inference_mode(), apply(model, Plan(cuts, scope=scope)):
        model(**batch(ROWS))
    assert len(seen) == 2
    for tokens, n_keep in seen:
        read = read_counts(tokens.valid, tokens.image, tokens.text_valid, n_keep)
        assert tokens.counts == replace(read, filler_right=True)
