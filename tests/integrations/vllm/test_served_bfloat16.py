"""Answers in bfloat16 over FlashAttention: as near to float32's as the executor's in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import served
import torch
from served import PLANS, Executor

from tpcal.calibrate.embedded import samples

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.gpu,
    pytest.mark.usual,
    pytest.mark.skipif(not served.ON_GPU, reason="FlashAttention needs a GPU"),
]

N = 200
CHANCE = 0.05
"""Of the answers: both engines round differently, and about 0.02 is the standard deviation."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["three cuts", "attention"])
@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_bfloat16_changes_no_more_answers_than_in_the_executor(
    name: str, eager: bool, tmp_path: Path
) -> None:
    plan, questions = PLANS[name], samples("eval", N)
    exact = Executor().answers(plan, questions).tokens
    rounded = Executor(torch.bfloat16).answers(plan, questions).tokens
    options = {"dtype": "bfloat16", "attention_backend": "FLASH_ATTN", "enforce_eager": eager}
    with served.engine(plan, tmp_path, max_num_batched_tokens=140, **options) as engine:
        found = engine.answers(questions).tokens
        assert engine.n_waited > 0
    bound = _share(rounded, exact) - CHANCE
    print(f"{name}: {_share(found, exact):.3f} served, {_share(rounded, exact):.3f} executor")
    assert _share(found, exact) >= bound


def _share(some: list[list[int]], others: list[list[int]]) -> float:
    """Share of the answers that are equal."""
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)
