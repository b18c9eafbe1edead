"""FastVLM: a convolutional tower, here ResNet for FastViT, which needs timm."""

from __future__ import annotations

from pictures import IMAGE, TEXT, Writer, case, random_model, same
from transformers import (
    CLIPImageProcessorPil,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    Qwen2Config,
    ResNetConfig,
)

from tpcal.plans.laws import Case

SIDE = 32  # pixels; the tower shrinks them eight times


def build(attn: str) -> Case:
    config = FastVlmConfig(
        vision_config=ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            layer_type="basic",
            hidden_size=32,  # the projector asks for it
        ),
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    kernels = {"text_config": attn, "vision_config": "eager"}
    model = random_model(FastVlmForConditionalGeneration, config, kernels)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return case("fast_vlm", model, Writer(processor, same((SIDE // 8) ** 2)))
