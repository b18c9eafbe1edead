"""How a task wants its answers decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SAMPLING = ("temperature", "top_p", "top_k")
_KNOWN = frozenset(("max_new_tokens", "until", "do_sample", "num_beams", *_SAMPLING))


@dataclass(frozen=True)
class Decoding:
    """Settings of ``generate``, and where to stop."""

    max_new_tokens: int
    until: tuple[str, ...]
    """The answer ends before the first of these."""
    how: Mapping[str, Any]
    """Keywords of ``generate``."""
    unknown: tuple[str, ...]
    """Settings that are passed over."""

    def cut(self, text: str) -> str:
        """The answer up to the first stop, without blanks around it."""
        for stop in self.until:
            text = text.split(stop, 1)[0]
        return text.strip()


def read_decoding(settings: Mapping[str, Any], max_new_tokens: int) -> Decoding:
    """What a task's ``generation_kwargs`` ask for.

    Answers are sampled where ``do_sample`` says so or, without it, where a temperature is given;
    never at temperature 0.

    Args:
        settings: The task's.
        max_new_tokens: Longest answer where the task names none.
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
