"""Laws on a GPU, with its kernels sdpa and eager, in float32 and in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import gpu_cases
import pytest
import torch

from tpcal.plans.laws import LAWS
from tpcal.plans.laws.trial import Trial

pytestmark = pytest.mark.gpu

LAW = {law.name: law for law in LAWS}
WHOLE = ("llava", "qwen2_5_vl")
"""Architectures on which every law is tried."""
OTHERS = ("qwen3_vl", "gemma3", "internvl")
MAIN = ("reference", "rows alone", "kv cache")
MOST = (*MAIN, "same choice", "images alone", "text turn", "image turn", "static cache", "greedy")
HALF = (*MAIN, "positions", "same choice", "text turn", "crop", "half precision")
"""Laws that do not compare chosen words, which rounding in half precision may turn."""


@lru_cache(maxsize=1)  # the laws of a case follow each other
def trial(name: str, attn: str, device: torch.device, dtype: torch.dtype) -> Trial:
    return Trial(gpu_cases.case(name, attn, device, dtype))


def pairs(names: Sequence[str], laws: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, law) for name in names for law in laws]


@pytest.mark.parametrize(("name", "law"), pairs(WHOLE, tuple(LAW)) + pairs(OTHERS, MOST))
def test_the_law_holds_in_float32(gpu: torch.device, name: str, law: str) -> None:
    verdict = LAW[law].judge(trial(name, "sdpa", gpu, torch.float32))
    assert verdict.holds, verdict.detail


@pytest.mark.parametrize(("name", "law"), pairs((*WHOLE, "gemma3"), MAIN))
def test_the_law_holds_with_eager_attention(gpu: torch.device, name: str, law: str) -> None:
    verdict = LAW[law].judge(trial(name, "eager", gpu, torch.float32))
    assert verdict.holds, verdict.detail


@pytest.mark.parametrize(("name", "law"), pairs(WHOLE, HALF) + pairs(OTHERS, MAIN))
def test_the_law_holds_in_bfloat16(gpu: torch.device, name: str, law: str) -> None:
    verdict = LAW[law].judge(trial(name, "sdpa", gpu, torch.bfloat16))
    if verdict.holds is None and law not in MAIN:
        pytest.skip(verdict.detail)  # the unpruned model itself rounds too coarsely
    assert verdict.holds, verdict.detail
