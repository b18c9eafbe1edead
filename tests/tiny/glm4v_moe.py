"""GLM-4.5V: as GLM-4.1V, with experts after the first layer."""

from __future__ import annotations

import mrope
from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

from tiny.glm4v import TOKENS, VISION, writer
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}  # half of a head turns
    text = mrope.text(head_dim=16, rope_parameters=rope, **experts)
    config = Glm4vMoeConfig(vision_config=VISION, text_config=text, **TOKENS)
    return mrope.case("glm4v_moe", Glm4vMoeForConditionalGeneration, config, attn, writer())
