"""Llama 4 far beyond its training length, as it were: temperatures rise with every few places."""

from __future__ import annotations

from tiny.llama4 import scaled
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    return scaled("llama4_tempered", attn, floor_scale=6, attn_scale=0.5)
