"""Pixtral: LLaVA's class with a tower for images of any size, their rows ended by a text token."""

from __future__ import annotations

from pictures import IMAGE, PATCH, TEXT, TOWER, Writer, case, in_rows, random_model
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**TOWER | {"image_size": 64}, head_dim=16),
        text_config=MistralConfig(**TEXT, sliding_window=None),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = random_model(LlavaForConditionalGeneration, config, attn)
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=PATCH)
    return case("pixtral", model, Writer(processor, lambda images: in_rows(images, PATCH)))
