"""Special tokens that text spells, made plain: what a user types is never an image's place."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any


def plain_text(processor: Any, text: str) -> str:
    """The text with a blank in every special token of the processor: ``<image>`` is ``< image>``.

    So the model reads what was typed, as text: no placeholder comes into being, and none is lost.
    Text that spells no special token stays as it is.
    """
    return _pattern(_special(processor)).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _special(processor: Any) -> tuple[str, ...]:
    """Special tokens of the tokenizer, and what the processor itself calls a token."""
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
