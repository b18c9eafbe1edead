"""Video-LLaVA: one image size; the frames of a video keep their class tokens."""

from __future__ import annotations

from pictures import IMAGE, N_TOWER, SIDE, TEXT, TOWER, VIDEO, Writer, case, random_model, same
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
    return case("video_llava", model, writer, with_videos=True)
