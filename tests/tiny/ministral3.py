"""Ministral 3: Mistral 3's class with queries that grow with their positions."""

from __future__ import annotations

from pictures import IMAGE, PATCH, TEXT, TOWER, Writer, case, in_rows, random_model
from transformers import (
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
)

from tpcal.plans.laws import Case

MERGED = 2 * PATCH
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8,  # so that a short prompt has queries of several sizes
    "max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}


def build(attn: str) -> Case:
    text = TEXT | {"initializer_range": 0.12, "max_position_embeddings": 64}
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**TOWER | {"image_size": 64}, head_dim=16),
        text_config=Ministral3Config(**text, rope_parameters=ROPE),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    model = random_model(Mistral3ForConditionalGeneration, config, attn)
    processor = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=MERGED)
    return case("ministral3", model, Writer(processor, lambda images: in_rows(images, MERGED)))
