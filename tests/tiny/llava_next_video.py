"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; the frames of a video pooled, without newlines."""

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
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextImageProcessorPil,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    model = random_model(LlavaNextVideoForConditionalGeneration, config, attn)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )
    writer = Writer(
        processor,
        counted(model),
        lambda frames: [VIDEO] * (frames.shape[1] * N_TOWER // 4),
    )
    return case("llava_next_video", model, writer, with_videos=True)
