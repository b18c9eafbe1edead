"""Tiny random models built from configs, and inputs for them. No network, no files."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE = 5
"""Id of the image token."""
PAD = 0
VOCAB = 97
N_LAYERS = 8
SIDE = 4
"""Tokens along one side of an image."""
N_IMAGE = SIDE * SIDE


def tiny_llava(
    attn: str = "sdpa",
    *,
    n_kv_heads: int = 2,
    n_layers: int = N_LAYERS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LlavaForConditionalGeneration:
    """A random LLaVA: hidden 64, 16 visual tokens per image, in evaluation mode."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8 * SIDE,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            num_key_value_heads=n_kv_heads,
            vocab_size=VOCAB,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=None,
            initializer_range=0.15,
        ),
        image_token_index=IMAGE,
        attn_implementation=attn,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attn)
    return model.eval().to(dtype)


def prompt(*parts: int, seed: int = 0) -> list[int]:
    """Token ids: a positive part is that many random text tokens, a 0 is an image."""
    generator = torch.Generator().manual_seed(seed)
    ids = [1]
    for part in parts:
        ids += [IMAGE] * N_IMAGE if part == 0 else _words(part, generator)
    return ids


def batch(
    prompts: list[list[int]], *, side: str = "left", seed: int = 0, mask: bool = True
) -> dict[str, Tensor]:
    """Model inputs for these prompts: padded ids, 2-D mask, random pixels where there are images."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), PAD)
    real = torch.zeros_like(ids)
    for row, ids_of_row in enumerate(prompts):
        n = len(ids_of_row)
        part = slice(length - n, None) if side == "left" else slice(0, n)
        ids[row, part], real[row, part] = torch.tensor(ids_of_row), 1
    inputs = {"input_ids": ids}
    if mask:
        inputs["attention_mask"] = real
    n_images = int((ids == IMAGE).sum()) // N_IMAGE
    if n_images:
        generator = torch.Generator().manual_seed(seed + 1)
        inputs["pixel_values"] = torch.randn(n_images, 3, 8 * SIDE, 8 * SIDE, generator=generator)
    return inputs


def rows_alone(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows of a batch as batches of one, without padding."""
    alone, used = [], 0
    for ids, real in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[real.bool()][None]
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        n = int((ids == IMAGE).sum()) // N_IMAGE
        if n:
            row["pixel_values"] = inputs["pixel_values"][used : used + n]
        used += n
        alone.append(row)
    return alone


def _words(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(IMAGE + 1, VOCAB, (n,), generator=generator).tolist()
