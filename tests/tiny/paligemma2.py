"""PaliGemma 2: sliding and full layers of Gemma 2, scores and logits bent by tanh."""

from __future__ import annotations

import gemma

from tiny.paligemma import prefixed
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    text = {
        **gemma.sliding(gemma.NARROW),
        "model_type": "gemma2",
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    }
    return prefixed("paligemma2", "eager", text)  # Gemma 2 knows no other
