"""Escaping of special tokens in text, so that nothing a user types becomes a placeholder."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any


def plain_text(processor: Any, text: str) -> str:
    """The text with a blank in every special token: ``<image>`` becomes ``< image>``.

    The model then reads the token as ordinary text, so that the text adds no placeholder to the
    prompt. Text without special tokens is returned unchanged.

    Args:
        processor: The model's processor, which knows its special tokens.
        text: Text of a user or of a data set.
    """
    # Longer tokens come first in the pattern, so that one inside another does not hide it.
    return _pattern(_special(processor)).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _special(processor: Any) -> tuple[str, ...]:
    """Special tokens of the tokenizer, and those that attributes of the processor name."""
    added = processor.tokenizer.added_tokens_decoder.values()
    words = {token.content for token in added if token.special}
    for name in ("image_token", "video_token", "audio_token", *vars(processor)):
        if name.endswith(("_token", "_tag")) and isinstance(own := _own(processor, name), str):
            words.add(own)
    whole = (word.strip() for word in words)
    return tuple(sorted({word for word in whole if len(word) > 1}, key=lambda w: (-len(w), w)))


def _own(processor: Any, name: str) -> Any:
    own = getattr(processor, name, None)
    return getattr(own, "content", own)  # an AddedToken


@lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, words)) or "(?!)")
