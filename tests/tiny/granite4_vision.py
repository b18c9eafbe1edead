"""Granite 4 Vision: LLaVA-NeXT's tiles, made smaller, and added before several decoder layers."""

from __future__ import annotations

from typing import Any

import torch
from pictures import IMAGE, PINPOINTS, SIDE, TEXT, TOWER, Inputs, Writer, case, random_model
from transformers import (
    CLIPVisionConfig,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionTextConfig,
    LlavaNextImageProcessorPil,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    scales = {"embedding_multiplier": 1.0, "logits_scaling": 4.0}
    config = Granite4VisionConfig(
        vision_config=CLIPVisionConfig(**{**TOWER, "hidden_size": 64, "num_hidden_layers": 3}),
        text_config=Granite4VisionTextConfig(
            **{**TEXT, **scales, "initializer_range": 0.1},
            residual_multiplier=1.0,
            attention_multiplier=0.25,
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            # Since transformers 5.20, the config sets the following itself.
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "num_attention_heads": 1,
        },
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_vision_layer=-1,
        spatial_target_layers=[2, 3],
    )
    # The Q-former knows no other attention before transformers 5.13; plans do not read it.
    kernels = {"": attn, "text_config": attn, "vision_config": attn, "qformer_config": "eager"}
    model = random_model(Granite4VisionForConditionalGeneration, config, kernels)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
    )

    def layout(images: Inputs) -> list[list[int]]:
        with torch.no_grad():
            encoded: Any = model.model.get_image_features(**images, return_dict=True)
        return [[IMAGE] * len(tokens) for tokens in encoded.deepstack_features[0][1]]

    return case("granite4_vision", model, Writer(processor, layout))
