"""A tiny random Qwen2.5-VL that vLLM and transformers load from a folder, with its processor."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = 40
SPECIAL = (
    *("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>"),
)
PROMPT = "w1 w2 <|vision_start|><|image_pad|><|vision_end|> w{} w7"
"""Prompt with an image and the number of a word."""


def save(folder: Path) -> None:
    """Writes the model, its tokenizer and its processor.

    Args:
        folder: A folder that exists.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    pixels = {"patch_size": 14, "merge_size": 2, "min_pixels": 28 * 28, "max_pixels": 64 * 28 * 28}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template="{{ messages }}",
    )
    processor.save_pretrained(folder)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 128,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        text_config={
            "vocab_size": len(words),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "initializer_range": 0.1,
            "bos_token_id": None,
            "eos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).float().eval().save_pretrained(folder)
