"""Mistral 3: Pixtral's tower and layout, 2 x 2 patches in a token, a sliding window."""

from __future__ import annotations

from pictures import IMAGE, PATCH, TEXT, TOWER, Writer, case, in_rows, random_model
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
)

from tpcal.plans.laws import Case

MERGED = 2 * PATCH


def build(attn: str) -> Case:
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**TOWER | {"image_size": 64}, head_dim=16),
        text_config=MistralConfig(**TEXT | {"initializer_range": 0.12}, sliding_window=20),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    model = random_model(Mistral3ForConditionalGeneration, config, attn)
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=MERGED)
    return case("mistral3", model, Writer(processor, lambda images: in_rows(images, MERGED)))
