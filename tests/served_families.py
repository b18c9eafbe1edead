"""Tiny random models that vLLM and transformers load from a folder, each with its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

WORDS = 40
SPECIAL = (
    *("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>"),
)
QWEN = "w1 w2 <|vision_start|><|image_pad|><|vision_end|> w{} w7"
"""Prompt with an image and the number of a word."""
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": None,
}


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL: M-RoPE, grouped queries, images of any size."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2}
    config = _qwen(Qwen2VLConfig, {**vision, "patch_size": 14})
    _save(folder, Qwen2VLForConditionalGeneration, config, _processor(Qwen2VLProcessor))


def qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: the same with windows in the vision tower."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = _qwen(Qwen2_5_VLConfig, vision)
    processor = _processor(Qwen2_5_VLProcessor)
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor)


FAMILIES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "Qwen2VLForConditionalGeneration": (qwen2_vl, QWEN),
    "Qwen2_5_VLForConditionalGeneration": (qwen2_5_vl, QWEN),
}
"""What saves a model of each architecture into a folder, and the format of its prompts."""


def _qwen(kind: Any, vision: Mapping[str, Any]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    return kind(
        vision_config={**vision, "initializer_range": 0.1},
        text_config={**TEXT, **_ids(), "rope_parameters": rope},
        image_token_id=_id("<|image_pad|>"),
        video_token_id=_id("<|video_pad|>"),
        vision_start_token_id=_id("<|vision_start|>"),
        vision_end_token_id=_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _processor(kind: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"patch_size": 14, "merge_size": 2, "min_pixels": 28 * 28, "max_pixels": 64 * 28 * 28}
    images, videos = Qwen2VLImageProcessor(**pixels), Qwen2VLVideoProcessor(**pixels)
    return kind(images, _tokenizer(), videos, chat_template="{{ messages }}")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )


def _id(word: str) -> int:
    return SPECIAL.index(word)


def _ids() -> dict[str, int]:
    end = _id("<|endoftext|>")
    return {"vocab_size": len(SPECIAL) + WORDS, "eos_token_id": end, "pad_token_id": end}


def _save(folder: Path, kind: Any, config: Any, processor: Any) -> None:
    torch.manual_seed(0)
    kind(config).float().eval().save_pretrained(folder)
    processor.save_pretrained(folder)
