"""LLaVA-1.5: a CLIP tower with one image size."""

from __future__ import annotations

from models import batch, prompt, tiny_llava

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    rows = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2), prompt(1, 0, 9)]
    return Case("llava", tiny_llava(attn), tuple(batch([r], seed=i) for i, r in enumerate(rows)))
