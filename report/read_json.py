"""Reader of the JSON files of `tpcal eval` and `tpcal bench`, which checks every value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tpcal.plans.errors import UsageError
from tpcal.plans.yaml_files import is_unicode, read_bytes

RATIOS = ("ttft", "token", "throughput")
KINDS = ("plan", "preset", "control")
MAX_BYTES = 50_000_000
T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """A value with its interval: 95 % for a share, the middle half of the repeats for a time."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluatedEntry:
    """The results of a plan, a published schedule or a control."""

    name: str
    kind: str
    keep: float
    prefill_flops: float
    """Share of the unpruned model's FLOPs; `kv_bytes` is a share as well."""
    kv_bytes: float
    accuracy: Span | None
    difference: Span | None
    agreement: Span | None
    worst: tuple[str, float] | None
    groups: Mapping[str, Span | None]
    """Accuracy of each group, or the agreement if no sample has a right answer."""
    beside: str | None = None
    """Plan that a control is compared with; None for plans."""

    @property
    def short(self) -> str:
        """The short name as `tpcal eval` prints it: `random`, `divprune@0.22`."""
        return brief(self.name, self.beside)

    @property
    def value(self) -> Span | None:
        """The accuracy, or the agreement if no sample has a right answer."""
        return self.accuracy or self.agreement


@dataclass(frozen=True)
class Compared:
    """A paired test of two entries."""

    one: str
    other: str
    measure: str
    difference: Span
    p: float
    p_adjusted: float
    n_changed: int


@dataclass(frozen=True)
class Evaluated:
    """The results in a file of `tpcal eval -o FILE.json`."""

    model: str
    fingerprint: str | None
    data: str
    """Description of the samples."""
    command: str
    unpruned: Span | None
    groups: Mapping[str, Span | None]
    """Accuracy of the unpruned model; None if no sample has a right answer."""
    entries: tuple[EvaluatedEntry, ...]
    tests: tuple[Compared, ...]


@dataclass(frozen=True)
class TimedRun:
    """The times of the unpruned model or of a plan in one cell."""

    name: str
    ttft_ms: Span
    token_ms: Span
    tokens_per_s: Span
    peak_bytes: int | None
    kv_bytes: int
    ratios: Mapping[str, Span]
    """Ratios ``ttft``, ``token`` and ``throughput`` to the unpruned model; empty for itself."""


@dataclass(frozen=True)
class TimedCell:
    """The times for one batch size and prompt size."""

    sizes: tuple[int, int, int, int]
    """Rows of a batch, image tokens and most text tokens of a row, generated tokens."""
    n_text_least: int
    runs: tuple[TimedRun, ...]


@dataclass(frozen=True)
class Timed:
    """The results in a file of `tpcal bench -o FILE.json`."""

    model: str
    fingerprint: str | None
    machine: Mapping[str, str]
    command: str
    cells: tuple[TimedCell, ...]
    slower: tuple[str, ...]


def brief(name: str, beside: str | None = None) -> str:
    """A name without its `preset:`, and of a control without its plan."""
    return name.removesuffix(f" = {beside}").removeprefix("preset:")


def read_evaluation(path: Path) -> Evaluated:
    """The results of `tpcal eval` in a file.

    Raises:
        UsageError: If the file is missing or holds something else.
    """
    return _read(path, "eval", _evaluated)


def read_bench(path: Path) -> Timed:
    """The results of `tpcal bench` in a file.

    Raises:
        UsageError: If the file is missing or holds something else.
    """
    return _read(path, "bench", _timed)


def _read(path: Path, command: str, parse: Callable[[Any], T]) -> T:
    rule = f"{path} must be the JSON that tpcal {command} -o FILE.json writes"
    data = read_bytes(path, f"file of tpcal {command}", MAX_BYTES)
    try:
        read = json.loads(data.decode("utf-8"))
        if not is_unicode(json.dumps(read, ensure_ascii=False)):
            raise ValueError("text that is no Unicode")
        return parse(read)
    except KeyError as error:
        raise UsageError(f"{rule}; {error.args[0]!r} is missing in it. Write it again.") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{rule}; got something else: {reason}. Write it again.") from None


def _evaluated(data: Any) -> Evaluated:
    model, before = data["model"], data["unpruned"]
    return Evaluated(
        model=str(model["name"]),
        fingerprint=model.get("fingerprint"),
        data=str(data["data"].get("description") or f"samples of {data['data']['name']}"),
        command=str(data.get("command", "–")),
        unpruned=_share(before["accuracy"]),
        groups={str(g): _share(v["accuracy"]) for g, v in before["groups"].items()},
        entries=tuple(map(_entry, data["entries"])),
        tests=tuple(map(_test, data["tests"])),
    )


def _entry(data: Any) -> EvaluatedEntry:
    cost, worst = data["cost"], data["worst_group"]
    right = "agreement" if data["accuracy"] is None else "accuracy"
    if data["kind"] not in KINDS:
        raise ValueError(f"{data['kind']!r} is not one of {', '.join(KINDS)}")
    return EvaluatedEntry(
        name=str(data["name"]),
        kind=str(data["kind"]),
        keep=_number(cost["layer_average_keep"]),
        prefill_flops=_number(cost["prefill_flops"]),
        kv_bytes=_number(cost["kv_bytes"]),
        accuracy=_share(data["accuracy"]),
        difference=_share(data["difference"], -1.0),
        agreement=_share(data["agreement"]),
        worst=None if worst is None else (str(worst["group"]), _number(worst["value"])),
        groups={str(g): _share(v[right]) for g, v in data["groups"].items()},
        beside=None if data.get("beside") is None else str(data["beside"]),
    )


def _test(data: Any) -> Compared:
    difference = _share(data["difference"], -1.0)
    if difference is None:
        raise ValueError("a test has no difference")
    return Compared(
        one=str(data["one"]),
        other=str(data["other"]),
        measure=str(data["measure"]),
        difference=difference,
        p=_number(data["p"]),
        p_adjusted=_number(data["p_adjusted"]),
        n_changed=int(_number(data["n_changed"])),
    )


def _timed(data: Any) -> Timed:
    of = data.get("model") or data["geometry"]
    name = of if isinstance(of, str) else of.get("name") or ", ".join(map(str, of.values()))
    return Timed(
        model=str(name),
        fingerprint=None if isinstance(of, str) else of.get("fingerprint"),
        machine={str(k): str(v) for k, v in data["machine"].items()},
        command=str(data.get("command", "–")),
        cells=tuple(map(_cell, _some(data["cells"], "cells"))),
        slower=tuple(map(str, data["slower"])),
    )


def _cell(data: Any) -> TimedCell:
    rows, n_visual, n_text, n_new = (
        int(_number(data[name])) for name in ("batch_size", "n_visual", "n_text", "n_new")
    )
    least = int(_number(data.get("n_text_least", n_text)))
    return TimedCell(
        (rows, n_visual, n_text, n_new), least, tuple(map(_run, _some(data["runs"], "runs")))
    )


def _run(data: Any) -> TimedRun:
    peak = data["peak_bytes"]
    return TimedRun(
        name=str(data["name"]),
        ttft_ms=_spread(data["ttft_ms"]),
        token_ms=_spread(data["token_ms"]),
        tokens_per_s=_spread(data["tokens_per_s"]),
        peak_bytes=None if peak is None else int(_number(peak)),
        kv_bytes=int(_number(data["kv_bytes"])),
        ratios={k: _spread(data["ratios"][k]) for k in RATIOS if "ratios" in data},
    )


def _share(data: Any, least: float = 0.0) -> Span | None:
    """A share with its interval, or a difference of shares if ``least`` is -1."""
    if data is None:
        return None
    value, low, high = (_number(data[k]) for k in ("value", "low", "high"))
    slack = 1e-9
    if not least - slack <= low <= value + slack <= high + 2 * slack <= 1 + 3 * slack:
        raise ValueError(f"{value:g} [{low:g}, {high:g}] is no share with its interval")
    return Span(value, low, high)


def _spread(data: Any) -> Span:
    median, low, high = (_number(data[k]) for k in ("median", "low", "high"))
    if not 0 < low <= median <= high:
        raise ValueError(f"{median:g} [{low:g}, {high:g}] is no spread of times")
    return Span(median, low, high)


def _some(data: Any, what: str) -> Any:
    if not data:
        raise ValueError(f"it has no {what}")
    return data


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
