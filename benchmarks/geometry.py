"""Random models of a real model's widths, and a prompt for them whose image is encoded already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE, START, END = 5, 6, 7  # ids of the image token and of what stands around images
_FIRST_WORD = 8
_PATCH = 14


@dataclass(frozen=True)
class Geometry:
    """Widths of a decoder and size of the image, a square."""

    family: str
    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    side: int
    """Visual tokens along one side of the image."""

    @property
    def n_visual(self) -> int:
        return self.side**2


GEOMETRIES: dict[str, Geometry] = {
    "7b-layers": Geometry("llava", 8, 4096, 11008, 32, 32, 32064, 24),
    "llava-1.5-7b": Geometry("llava", 32, 4096, 11008, 32, 32, 32064, 24),
    "qwen2.5-vl-7b": Geometry("qwen", 28, 3584, 18944, 28, 4, 152064, 24),
    "small": Geometry("llava", 8, 1024, 2752, 16, 16, 32064, 24),
    "tiny": Geometry("llava", 8, 64, 128, 4, 2, 128, 6),
    "tiny-qwen": Geometry("qwen", 8, 64, 128, 4, 2, 128, 6),
}


def build(geometry: Geometry, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model with random weights; its vision tower is one narrow layer and is never run."""
    kind, config = (_llava if geometry.family == "llava" else _qwen)(geometry)
    torch.manual_seed(0)
    with torch.device(device):
        model = kind._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def prompt(geometry: Geometry, n_text: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Inputs of one prompt: half of the text, the image, the other half; the image as features."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(_FIRST_WORD, geometry.vocab, (n_text - 2,), generator=generator).tolist()
    before = (n_text - 2) // 2
    image = [START, *[IMAGE] * geometry.n_visual, END]
    ids = torch.tensor([[*words[:before], *image, *words[before:]]], device=device)
    features = torch.randn(geometry.n_visual, geometry.hidden, generator=generator)
    encoded = BaseModelOutputWithPooling(pooler_output=(features.to(device, dtype),))
    inputs = {"input_ids": ids, "mm_encoder_outputs": {"image": encoded}}
    return inputs if geometry.family == "llava" else {**inputs, **_mrope_inputs(geometry, ids)}


def with_layers(geometry: Geometry, n_layers: int | None) -> Geometry:
    """The same widths at another depth."""
    return geometry if n_layers is None else replace(geometry, n_layers=n_layers)


def _mrope_inputs(geometry: Geometry, ids: Tensor) -> Mapping[str, Tensor]:
    cells = torch.tensor([[1, 2 * geometry.side, 2 * geometry.side]], device=ids.device)
    return {"image_grid_thw": cells, "mm_token_type_ids": (ids == IMAGE).int()}


def _text(geometry: Geometry) -> dict[str, Any]:
    return {
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.ffn,
        "num_hidden_layers": geometry.n_layers,
        "num_attention_heads": geometry.n_heads,
        "num_key_value_heads": geometry.n_kv_heads,
        "vocab_size": geometry.vocab,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


def _llava(geometry: Geometry) -> tuple[type[PreTrainedModel], LlavaConfig]:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_PATCH * geometry.side,
        patch_size=_PATCH,
    )
    text = LlamaConfig(**_text(geometry))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration, config


def _qwen(geometry: Geometry) -> tuple[type[PreTrainedModel], Qwen2_5_VLConfig]:
    head = geometry.hidden // geometry.n_heads
    rope = [head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16]
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": geometry.hidden,
        "fullatt_block_indexes": [0],
    }
    text = _text(geometry) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": rope}
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return Qwen2_5_VLForConditionalGeneration, config
