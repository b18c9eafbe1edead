"""LLaVA-NeXT: an overview, and tiles without the padding, each of their rows ended by a token."""

from __future__ import annotations

from pictures import IMAGE, PINPOINTS, SIDE, TEXT, TOWER, Writer, case, counted, random_model
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    model = random_model(LlavaNextForConditionalGeneration, config, attn)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    return case("llava_next", model, Writer(processor, counted(model)))
