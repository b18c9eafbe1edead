"""Video-LLaVA: one image size; the frames of a video keep their class tokens."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

from pictures import (
    IMAGE,
    N_TOWER,
    SIDE,
    TEXT,
    TOWER,
    VIDEO,
    Inputs,
    Writer,
    case,
    random_model,
    same,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    model = random_model(VideoLlavaForConditionalGeneration, config, attn)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    writer = Writer(
        processor, same(N_TOWER), lambda frames: [VIDEO] * (frames.shape[1] * (N_TOWER + 1))
    )
    made = case("video_llava", model, writer, with_videos=True)
    if "pixel_values" in signature(model.forward).parameters:
        return made
    rows, videos = (tuple(map(_renamed, rows)) for rows in (made.rows, made.videos))
    return replace(made, rows=rows, videos=videos)


def _renamed(row: Inputs) -> Inputs:
    """The inputs as they were called before transformers 5.21."""
    return {"pixel_values_images" if k == "pixel_values" else k: v for k, v in row.items()}
