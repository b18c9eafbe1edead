"""Models with random weights and a real model's widths, and prompts with encoded images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import get_max_memory
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

from tpcal.calibrate.bench.prompt_sizes import PromptSize
from tpcal.plans.errors import RunFailed
from tpcal.plans.executor.compat import require_encoded_images
from tpcal.plans.images import encoded

PAD, IMAGE, START, END = 0, 5, 6, 7
"""Token ids of filler, of the image token, and of the tokens before and after an image."""
_FIRST_WORD = 8
_PATCH = 14
_SPARE = 1.2
"""Memory that a run needs, as a multiple of the weights: computation and the cache are a fifth."""


@dataclass(frozen=True)
class Geometry:
    """Widths of a decoder, and the size of a square image."""

    family: str
    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    side: int = 24
    """Visual tokens along one side of an image."""
    token_px: int | None = None
    """Pixels along one side of a visual token; None if all images have the same token count."""

    @property
    def n_visual(self) -> int:
        """Number of visual tokens of an image."""
        return self.side**2

    @property
    def n_parameters(self) -> int:
        """Number of weights of the decoder, the embedding and the head."""
        # A layer has D * D weights each for queries and outputs, D * kv each for keys and values,
        # and 3 * D * F for the feed-forward; embedding and head have V * D each.
        kv = self.hidden * self.n_kv_heads // self.n_heads
        layer = 2 * self.hidden * (self.hidden + kv) + 3 * self.hidden * self.ffn
        return self.n_layers * layer + 2 * self.vocab * self.hidden

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights."""
        return self.n_parameters * dtype.itemsize

    def with_layers(self, n_layers: int | None) -> Geometry:
        """The same widths at another depth."""
        return self if n_layers is None else replace(self, n_layers=n_layers)

    def for_images(self, side_px: int) -> Geometry:
        """The same with images of ``side_px`` pixels along a side."""
        if self.token_px is None:
            return self
        return replace(self, side=max(1, round(side_px / self.token_px)))


GEOMETRIES: Mapping[str, Geometry] = {
    "llava-1.5-7b": Geometry("llava", 32, 4096, 11008, 32, 32, 32064),
    "llava-1.5-13b": Geometry("llava", 40, 5120, 13824, 40, 40, 32064),
    "qwen2.5-vl-3b": Geometry("qwen", 36, 2048, 11008, 16, 2, 151936, token_px=28),
    "qwen2.5-vl-7b": Geometry("qwen", 28, 3584, 18944, 28, 4, 152064, token_px=28),
    "small": Geometry("llava", 8, 1024, 2752, 16, 16, 32064),
    "tiny": Geometry("llava", 8, 64, 128, 4, 2, 128, side=6),
    "tiny-qwen": Geometry("qwen", 8, 64, 128, 4, 2, 128, side=6),
}


def build(
    geometry: Geometry, dtype: torch.dtype, device: str, attention: str = "sdpa"
) -> PreTrainedModel:
    """A model with random weights; its vision tower is one narrow layer and is never run."""
    kind, config = (_llava if geometry.family == "llava" else _qwen)(geometry)
    torch.manual_seed(0)
    with torch.device(device):
        model = kind._from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def check_memory(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> None:
    """Checks that the device has room for the weights and a fifth more; allocates nothing.

    Raises:
        RunFailed: There is not enough room; the message says how many layers fit.
    """
    room = _free_bytes(device)
    if room is None or _SPARE * geometry.weight_bytes(dtype) <= room:
        return
    depths = range(geometry.n_layers - 1, 0, -1)
    fits = (n for n in depths if _SPARE * geometry.with_layers(n).weight_bytes(dtype) <= room)
    most = next(fits, 0)
    weights = geometry.weight_bytes(dtype) / 2**30
    way_out = f"--layers {most} fits" if most else "Not even one layer fits"
    half = ", or --dtype bfloat16 halves it" if dtype == torch.float32 else ""
    raise RunFailed(
        f"{name} with {geometry.n_layers} layers in {str(dtype).removeprefix('torch.')} must have "
        f"{_SPARE * weights:.1f} GiB on {device} ({weights:.1f} for weights, a fifth more to "
        f"compute); {room / 2**30:.1f} GiB are free. {way_out}{half}."
    )


def _free_bytes(device: torch.device) -> int | None:
    return get_max_memory().get(device.index or 0 if device.type == "cuda" else device.type)


def prompt(
    geometry: Geometry, n_text: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Inputs of one prompt with one image, as `prompts`, without a mask as nothing is padded."""
    inputs = prompts(geometry, PromptSize(n_text=n_text), dtype, device)
    del inputs["attention_mask"]
    return inputs


def prompts(
    geometry: Geometry, shape: PromptSize, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Left-padded inputs; a row is half of its text, its images as features, the other half.

    Raises:
        UsageError: There are images, and the installed transformers encodes all of them itself.
    """
    if shape.n_images:
        require_encoded_images()
    generator = torch.Generator().manual_seed(1)
    rows = [_row(geometry, n, shape.n_images, generator) for n in shape.text_lengths]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows], device=device)
    real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(real, device=device)}
    if geometry.family == "qwen":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    n_images = shape.batch_size * shape.n_images
    return inputs | _encoded(geometry, n_images, generator, dtype, device) if n_images else inputs


def _row(geometry: Geometry, n_text: int, n_images: int, generator: torch.Generator) -> list[int]:
    n_words = max(2, n_text - 2 * n_images)
    words = torch.randint(_FIRST_WORD, geometry.vocab, (n_words,), generator=generator).tolist()
    image = [START, *[IMAGE] * geometry.n_visual, END]
    return [*words[: n_words // 2], *image * n_images, *words[n_words // 2 :]]


def _encoded(
    geometry: Geometry,
    n_images: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, Any]:
    """Random features of the images, in the form in which `generate` passes encoded images."""
    shape = geometry.n_visual, geometry.hidden
    noise = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(n_images)]
    output = BaseModelOutputWithPooling(pooler_output=tuple(noise))
    inputs: dict[str, Any] = {"mm_encoder_outputs": {"image": output}}
    if geometry.family == "qwen":
        cells = torch.tensor([[1, 2 * geometry.side, 2 * geometry.side]] * n_images, device=device)
        encoded.note(output, {"image_grid_thw": cells})  # `generate` does not keep the sizes
        inputs["image_grid_thw"] = cells
    return inputs


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
        "pad_token_id": PAD,
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
