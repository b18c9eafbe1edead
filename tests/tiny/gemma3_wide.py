"""Gemma 3 with a window that no prompt reaches."""

from __future__ import annotations

import gemma

from tiny.gemma3 import windowed
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    return windowed("gemma3_wide", attn, gemma.WIDE)
