"""Reads frozen records from plain data, and collects every problem; writes them as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeVar, get_type_hints

from tpcal.plans.yaml_files import MAX_DEPTH, MAX_DIGITS, text_problem

Record = TypeVar("Record")
MAX_LAYERS = 1_000
MAX_WHOLE = 2**53
"""Largest integer; all readers of JSON and YAML represent integers exactly up to it."""
FRACTIONS = {
    "bound",
    "confidence",
    "flips",
    "keep",
    "layer_average_keep",
    "max_flips",
    "text_to_visual_below",
    "visual_to_text_below",
}
"""Names of fields that hold a number in [0, 1], or a mapping to such numbers."""
RANGES: Mapping[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(FRACTIONS, (0, 1)),
    **dict.fromkeys(("max_loss", "measured", "predicted"), (None, None)),
    "layer": (0, MAX_LAYERS - 1),
    "n_layers": (1, MAX_LAYERS),
}
"""Smallest and largest value by field name; `bounds` gives those of the other fields."""


def bounds(name: str, *, integer: bool) -> tuple[float | None, float | None]:
    """Smallest and largest value that a field called ``name`` may hold; None: no limit."""
    return RANGES.get(name, (0, MAX_WHOLE if integer else None))


class Reader:
    """Checks values one by one and collects the problems instead of raising an error."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, path: str, rule: str, value: Any) -> None:
        """Adds the problem ``<path> must <rule>; got <value>.``"""
        try:
            shown = repr(value)
        except (ValueError, RecursionError):  # e.g. integers with very many digits
            shown = f"a {type(value).__name__} that cannot be shown"
        if len(shown) > 60:
            shown = shown[:57] + "…"
        self.problems.append(f"{path} must {rule}; got {shown}.")

    def mapping(self, value: Any, path: str, known: Sequence[str]) -> dict[str, Any] | None:
        """The mapping with only its known keys; None if the value is no mapping."""
        if not isinstance(value, Mapping):
            self.wrong(path, "be a mapping", value)
            return None
        for key in value:
            if key not in known:
                self.wrong(f"{path} keys", f"be among {', '.join(known)}", key)
        return {key: value[key] for key in value if key in known}

    def text(self, body: Mapping[str, Any], key: str, path: str = "") -> str | None:
        """The string under ``key``; None if it is absent or not text."""
        value = body.get(key)
        if value is not None and not _is_text(value):
            self.wrong(f"{path}{key}", "be text", value)
            return None
        return value

    def number(self, value: Any, path: str, name: str, *, integer: bool = False) -> Any:
        """The number, if it is finite and within the `bounds` of ``name``; otherwise None."""
        if not _is_number(value, integer):
            self.wrong(path, "be an integer" if integer else "be a number", value)
            return None
        least, most = bounds(name, integer=integer)
        if name in FRACTIONS and not 0 <= value <= 1:
            self.wrong(path, "be in [0, 1]", value)
        elif least is not None and value < least:
            self.wrong(path, f"be at least {least}", value)
        elif most is not None and value > most:
            self.wrong(path, f"be at most {most}", value)
        else:
            return value if integer else float(value)
        return None

    def plain(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value, checked to be text, finite numbers, booleans, None, lists and mappings."""
        if depth > MAX_DEPTH and isinstance(value, Mapping | list):
            self.wrong(path, f"be nested at most {MAX_DEPTH} deep", value)
        elif isinstance(value, Mapping):
            return self._plain_mapping(value, path, depth)
        elif isinstance(value, list):
            return [self.plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        elif type(value) is float and not math.isfinite(value):
            self.wrong(path, "be finite", value)
        elif type(value) is int and abs(value) >= 10 ** (MAX_DIGITS - 1):
            self.wrong(path, f"have fewer than {MAX_DIGITS} digits", value)
        elif value is not None and type(value) not in (bool, int, float) and not _is_text(value):
            self.wrong(path, "be text, a number, a list or a mapping", value)
        return value

    def _plain_mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        for key in value:
            if not _is_text(key):
                self.wrong(f"{path} keys", "be text", key)
        texts = {key: item for key, item in value.items() if _is_text(key)}
        return {k: self.plain(item, f"{path}.{k}", depth + 1) for k, item in texts.items()}


def _is_text(value: Any) -> bool:
    """Whether a value is text that a file can keep."""
    return type(value) is str and text_problem(value) is None


def _is_number(value: Any, integer: bool) -> bool:
    """Whether a value is a number that is finite when converted to float."""
    if type(value) not in ((int,) if integer else (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_record(
    reader: Reader, body: Mapping[str, Any], key: str, record: type[Record], at: str = ""
) -> Record | None:
    """The frozen dataclass ``record`` under ``body[key]``; None if it is absent or wrong.

    The types of its fields are the rules: text, integers, other numbers, mappings to numbers, and
    lists of integers.
    """
    if body.get(key) is None:
        return None
    path = f"{at}{key}"
    hints = _hints(record)
    data = reader.mapping(body[key], path, [f.name for f in fields(record)])  # type: ignore[arg-type]
    if data is None:
        return None
    data = {name: value for name, value in data.items() if value is not None}  # null means absent
    before = len(reader.problems)
    values = {k: _read(reader, v, hints[k], f"{path}.{k}", k) for k, v in data.items()}
    for name, hint in hints.items():
        needed = "None" not in hint and "Mapping" not in hint
        if needed and name not in data:
            reader.problems.append(f"{path}.{name} must be given.")
    return record(**values) if len(reader.problems) == before else None


def _read(reader: Reader, value: Any, hint: str, path: str, name: str) -> Any:
    if "Mapping" in hint:
        data = reader.plain(value, path) if isinstance(value, Mapping) else None
        if data is None:
            reader.wrong(path, "be a mapping", value)
            return {}
        return {k: reader.number(v, f"{path}.{k}", name) for k, v in data.items()}
    if "tuple" in hint:
        if not isinstance(value, list):
            reader.wrong(path, "be a list", value)
            return ()
        items = enumerate(value)
        return tuple(reader.number(v, f"{path}[{i}]", name, integer=True) for i, v in items)
    if "str" in hint:
        return reader.text({path: value}, path)
    return reader.number(value, path, name, integer="int" in hint)


def is_plain(value: Any) -> bool:
    """Whether a value consists of plain data only, as `Reader.plain` defines it."""
    reader = Reader()
    reader.plain(value, "")
    return not reader.problems


def given(value: Any) -> Any:
    """Plain data without None and empty mappings; the parameters of selectors are unchanged."""
    if isinstance(value, list):
        return [given(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = {key: item if key == "params" else given(item) for key, item in value.items()}
    return {key: item for key, item in items.items() if item is not None and item != {}}


def data_of(record: Any) -> dict[str, Any]:
    """Plain data of a record; numbers are converted to the types of their fields."""
    hints = _hints(type(record))
    return {name: _data(getattr(record, name), hint) for name, hint in hints.items()}


def _types(record: type) -> Mapping[str, str]:
    types = get_type_hints(record)  # parses every annotation
    return {f.name: str(types[f.name]) for f in fields(record)}


_hints: Callable[[type], Mapping[str, str]] = cache(_types)
"""The type of every field of a record, as text, in the order of its fields."""


def _data(value: Any, hint: str) -> Any:
    if is_dataclass(value):
        return data_of(value)
    if isinstance(value, Mapping):
        return {key: _data(item, hint) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item, hint) for item in value]
    if isinstance(value, bool):
        return value
    with suppress(OverflowError):  # the rules report such numbers
        if "float" in hint and isinstance(value, Real):
            return float(value)
        if "int" in hint and isinstance(value, Integral):
            return int(value)
    return value
