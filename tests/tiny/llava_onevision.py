"""LLaVA-OneVision: tiles shrunk to a limit, several images untiled, pooled videos."""

from __future__ import annotations

from pictures import (
    IMAGE,
    N_TOWER,
    PINPOINTS,
    SIDE,
    TEXT,
    TOWER,
    VIDEO,
    Writer,
    case,
    counted,
    random_model,
)
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    SiglipVisionConfig,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    model = random_model(LlavaOnevisionForConditionalGeneration, config, attn)
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    writer = Writer(
        processor,
        counted(model),
        lambda frames: [VIDEO] * (frames.shape[1] * N_TOWER // 4 + 1),
    )
    return case("llava_onevision", model, writer, with_videos=True)
