"""Answers as token ids: those of the data, and the model's own where the data has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tpcal.calibrate.inputs.placeholders import plain_text

MAX_ANSWER_TOKENS = 32
"""Most answer tokens that a loss is averaged over; longer answers are cut off."""
OWN_ANSWER_TOKENS = 16
"""Longest answer of the model's own, if the data has none, in tokens."""
GREEDY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}
"""Keywords of ``generate`` for greedy decoding, where every token is the likeliest one."""


def generate_ids(
    model: Any,
    processor: Any,
    prompts: Mapping[str, Tensor],
    max_new_tokens: int,
    how: Mapping[str, Any] = GREEDY,
) -> list[list[int]]:
    """[B] answers as token ids, up to the first end-of-text token, which is left out.

    Args:
        model: The model.
        processor: Its processor.
        prompts: Inputs from `prompt_inputs`.
        max_new_tokens: Longest answer, in tokens.
        how: Other keywords of ``generate``; greedy decoding by default.
    """
    with torch.inference_mode():
        out = model.generate(
            **prompts, max_new_tokens=max_new_tokens, pad_token_id=pad_id(processor), **how
        )
    ends = _end_ids(model, processor)
    # Before the answer comes the prompt, unless it was given as embeddings.
    n_prompt = prompts["input_ids"].shape[1] if "input_ids" in prompts else 0
    rows = out[:, n_prompt:].tolist()
    return [_until(row, ends) for row in rows]


def answer_ids(processor: Any, prompt: str, answer: str) -> list[int]:
    """Token ids of the answer as it continues the prompt; special tokens in it become text."""
    # Prompt and answer are tokenized together, because a tokenizer treats the first word of a
    # text differently from one inside of it. If the result does not start with the prompt's own
    # tokens, the tokenizer merged across the border, and the answer is tokenized alone.
    tokenizer, answer = processor.tokenizer, plain_text(processor, answer)
    special = any(prompt.endswith(token) for token in tokenizer.all_special_tokens)
    gap = "" if prompt[-1:].isspace() or special else " "
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt}{gap}{answer}", add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        ids = whole[len(before) :]
    else:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return list(ids[:MAX_ANSWER_TOKENS])


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


def _end_ids(model: Any, processor: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(e for e in [*ends, processor.tokenizer.eos_token_id] if e is not None)


def pad_id(processor: Any) -> int:
    """The token id of filler; 0 if the tokenizer has none."""
    own = processor.tokenizer.pad_token_id
    return 0 if own is None else own
