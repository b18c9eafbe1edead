"""VipLLaVA: a CLIP tower with one image size, features of several of its layers."""

from __future__ import annotations

from pictures import IMAGE, N_TOWER, SIDE, TEXT, TOWER, Writer, case, random_model, same
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, 1],
    )
    model = random_model(VipLlavaForConditionalGeneration, config, attn)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return case("vipllava", model, Writer(processor, same(N_TOWER)))
