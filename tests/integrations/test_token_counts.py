from __future__ import annotations

import pytest
import torch

from tpcal.integrations.token_counts import Tally
from tpcal.plans.executor.handle import Report
from tpcal.plans.executor.report import CutRecord


def _cut(layer: int, *rows: list[int]) -> CutRecord:
    stays = torch.tensor(rows, dtype=torch.bool)
    return CutRecord(layer, torch.arange(stays.shape[1]).expand_as(stays), stays)


def test_rows_of_several_lengths_are_averaged_each_by_its_own() -> None:
    tally = Tally(n_layers=4)
    cuts = (_cut(1, [1, 1, 0, 0], [1, 0, 0, 0]), _cut(3, [0, 0], [1, 0]))
    tally.add(Report(cuts, (), n_visual=(4, 2)))
    # row 0: 4 2 2 0 of 4 tokens; row 1: 2 1 1 1 of 2
    assert tally.layer_average_keep == pytest.approx((8 / 16 + 5 / 8) / 2)
    assert tally.visual_tokens == 3
    tally.add(Report((_cut(0, [1, 1, 0, 0]),), (), n_visual=(4,)))  # 2 2 2 2 of 4
    assert tally.layer_average_keep == pytest.approx((8 / 16 + 5 / 8 + 8 / 16) / 3)
    assert tally.n_rows == 3


def test_prompts_without_an_image_do_not_count() -> None:
    tally = Tally(n_layers=4)
    tally.add(Report((), (), n_visual=()))
    assert tally.layer_average_keep is None
    assert tally.visual_tokens is None
    tally.add(Report((_cut(2, [0, 0], [1, 0]),), (), n_visual=(0, 2)))  # 2 2 1 1 of 2
    assert tally.layer_average_keep == pytest.approx(6 / 8)
    assert tally.n_rows == 1
