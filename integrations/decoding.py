"""Decoding settings of a task of lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SAMPLING = ("temperature", "top_p", "top_k")
_KNOWN = frozenset(("max_new_tokens", "until", "do_sample", "num_beams", *_SAMPLING))


@dataclass(frozen=True)
class Decoding:
    """Settings of ``generate``, and the texts at which an answer ends."""

    max_new_tokens: int
    """Longest answer, in tokens."""
    until: tuple[str, ...]
    """The answer ends before the first of these texts."""
    how: Mapping[str, Any]
    """Keywords of ``generate``."""
    unknown: tuple[str, ...]
    """Names of settings that are ignored."""

    def cut(self, text: str) -> str:
        """The answer up to the first text of ``until``, without blanks around it."""
        for stop in self.until:
            text = text.split(stop, 1)[0]
        return text.strip()


def read_decoding(settings: Mapping[str, Any], max_new_tokens: int) -> Decoding:
    """The decoding that a task's ``generation_kwargs`` ask for.

    Answers are sampled if ``do_sample`` is true or, if that is missing, if a temperature is given;
    at temperature 0 they are never sampled.

    Args:
        settings: The task's ``generation_kwargs``.
        max_new_tokens: Longest answer if the task does not set one, in tokens.

    Example:
        >>> from tpcal.integrations.decoding import read_decoding
        >>> decoding = read_decoding({"until": ["\\n"], "temperature": 0}, max_new_tokens=16)
        >>> decoding.how, decoding.cut("yes\\nand more")
        ({'do_sample': False, 'num_beams': 1}, 'yes')
    """
    given = {name: value for name, value in settings.items() if value is not None}
    temperature = given.get("temperature")
    sampled = bool(given.get("do_sample", temperature)) and temperature != 0
    how = {"do_sample": sampled, "num_beams": int(given.get("num_beams", 1))}
    if sampled:
        how |= {name: given[name] for name in _SAMPLING if name in given}
    until = given.get("until", ())
    stops = [until] if isinstance(until, str) else until
    return Decoding(
        max_new_tokens=int(given.get("max_new_tokens", max_new_tokens)),
        until=tuple(stop for stop in stops if stop),
        how=how,
        unknown=tuple(sorted(given.keys() - _KNOWN)),
    )
