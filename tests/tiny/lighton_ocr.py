"""LightOnOCR: Pixtral's tower, 2 x 2 patches in a token, all tokens of an image in one run."""

from __future__ import annotations

from pictures import IMAGE, PATCH, TEXT, TOWER, Writer, case, counted, random_model
from transformers import (
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    Qwen3Config,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = LightOnOcrConfig(
        vision_config=PixtralVisionConfig(**TOWER | {"image_size": 64}, head_dim=16),
        text_config=Qwen3Config(**TEXT, head_dim=16),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    model = random_model(LightOnOcrForConditionalGeneration, config, attn)
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=2 * PATCH)
    return case("lighton_ocr", model, Writer(processor, counted(model)))
