"""The results of `tpcal bench` as records, which know their JSON.

The tables of `bench`, its JSON file and the report all show these records. The fields of a record
are the keys of its JSON, so a new result is a field here and a column where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tpcal.calibrate.bench.ratios import MEASURES, Cell, CellSizes, GenerationRun, Spread
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.plans.json_files import number, read_json


@dataclass(frozen=True)
class Machine:
    """Facts that times depend on, other than the model and the prompt."""

    device: str
    """Name of the processor or GPU."""
    attention: str
    """Attention implementation, by its name in transformers."""
    dtype: str
    threads: int
    """Number of torch's threads on the CPU."""
    tpcal: str
    torch: str
    transformers: str
    system: str

    @classmethod
    def from_json(cls, data: Any) -> Machine:
        """The machine in a file."""
        texts = {f.name: str(data[f.name]) for f in fields(cls) if f.name != "threads"}
        return cls(**texts, threads=int(number(data["threads"])))


@dataclass(frozen=True)
class RunResult:
    """The times and memory of the unpruned model or of a plan in one cell."""

    name: str
    ttft_ms: Spread
    decoder_ms: Spread
    token_ms: Spread
    tokens_per_s: Spread
    peak_bytes: int | None
    """Peak memory beyond the weights; None if it cannot be measured."""
    kv_bytes: int
    ratios: Mapping[str, Spread]
    """Ratios to the unpruned model, by names of `MEASURES`; empty for the unpruned model."""
    slower: tuple[str, ...] = ()
    """Names of the measures in which a plan is slower."""
    decoder_ratio: Spread | None = None
    """Ratio of ``decoder_ms``, which no plan is judged by."""

    @classmethod
    def of(cls, run: GenerationRun, unpruned: GenerationRun, slower: Sequence[str]) -> RunResult:
        """The result of a run, beside the unpruned model's in the same cell."""
        is_plan = run is not unpruned

        def ratio(of: str) -> Spread:
            return Spread.of(run.ratios(of, unpruned))

        return cls(
            name=run.name,
            ttft_ms=run.spread("ttft_ms"),
            decoder_ms=run.spread("decoder_ms"),
            token_ms=run.spread("token_ms"),
            tokens_per_s=run.spread("tokens_per_s"),
            peak_bytes=run.peak_bytes,
            kv_bytes=run.kv_bytes,
            ratios={m.name: ratio(m.of) for m in MEASURES} if is_plan else {},
            slower=tuple(slower),
            decoder_ratio=ratio("decoder_ms") if is_plan else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, of the unpruned model without ratios."""
        data = asdict(self)
        return data if self.ratios else {k: v for k, v in data.items() if k not in _OF_PLANS}

    @classmethod
    def from_json(cls, data: Any) -> RunResult:
        """The result in a file; older files do not tell the ratio of the decoder's time."""
        peak, decoder = data["peak_bytes"], data.get("decoder_ratio")
        return cls(
            name=str(data["name"]),
            ttft_ms=Spread.from_json(data["ttft_ms"]),
            decoder_ms=Spread.from_json(data["decoder_ms"]),
            token_ms=Spread.from_json(data["token_ms"]),
            tokens_per_s=Spread.from_json(data["tokens_per_s"]),
            peak_bytes=None if peak is None else int(number(peak)),
            kv_bytes=int(number(data["kv_bytes"])),
            ratios={
                m.name: Spread.from_json(data["ratios"][m.name])
                for m in MEASURES
                if "ratios" in data
            },
            slower=tuple(map(str, data.get("slower", ()))),
            decoder_ratio=None if decoder is None else Spread.from_json(decoder),
        )


_OF_PLANS = ("ratios", "slower", "decoder_ratio")


@dataclass(frozen=True)
class CellResult(CellSizes):
    """The unpruned model and the plans on the same prompts."""

    runs: tuple[RunResult, ...]
    """The unpruned model, then the plans."""

    @classmethod
    def of(cls, cell: Cell, slower: Sequence[Sequence[str]]) -> CellResult:
        """The result of a cell.

        Args:
            cell: The cell.
            slower: For each plan, the names of the measures in which it is slower.
        """
        sizes = {f.name: getattr(cell, f.name) for f in fields(CellSizes)}
        runs = zip((cell.unpruned, *cell.plans), ((), *slower), strict=True)
        return cls(**sizes, runs=tuple(RunResult.of(r, cell.unpruned, s) for r, s in runs))

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {**asdict(self), "runs": [run.to_json() for run in self.runs]}

    @classmethod
    def from_json(cls, data: Any) -> CellResult:
        """The result in a file; older files tell only the longest row's number of text tokens."""
        sizes = {"n_text_least": data.get("n_text_least", data["n_text"]), **data}
        return cls(
            **{f.name: int(number(sizes[f.name])) for f in fields(CellSizes)},
            runs=tuple(map(RunResult.from_json, _some(data["runs"], "runs"))),
        )

    @property
    def unpruned(self) -> RunResult:
        """The result of the unpruned model."""
        return self.runs[0]

    @property
    def plans(self) -> tuple[RunResult, ...]:
        """The results of the plans."""
        return self.runs[1:]


@dataclass(frozen=True)
class HiddenSlowdown:
    """The largest slowdown that noise may hide."""

    share: float
    """0.12 for 12 %."""
    where: str

    @classmethod
    def from_json(cls, data: Any) -> HiddenSlowdown:
        """The slowdown in a file."""
        return cls(number(data["share"]), str(data["where"]))


@dataclass(frozen=True)
class BenchResults:
    """All results of `tpcal bench`, a cell for each size of prompts.

    Example:
        >>> results = BenchResults.load(Path("bench.json"))  # doctest: +SKIP
        >>> BenchResults.from_json(results.to_json()) == results  # doctest: +SKIP
        True
    """

    time: str
    """When the timing ended, in ISO 8601."""
    model: ModelFacts | None
    """None for random weights."""
    geometry: Mapping[str, Any] | None
    """Widths and other facts of random weights; None for a model with weights."""
    machine: Machine
    repeats: int
    cells: tuple[CellResult, ...]
    slower: tuple[str, ...]
    """A sentence for each plan that is slower than the unpruned model."""
    hidden_slowdown: HiddenSlowdown | None = None
    """None if noise hides no slowdown."""

    @classmethod
    def of(
        cls, subject: ModelFacts | Mapping[str, Any], machine: Machine, cells: Sequence[Cell]
    ) -> BenchResults:
        """The results of a timing that has just ended.

        Args:
            subject: The model, or facts of random weights.
            machine: Where it was timed.
            cells: At least one cell, all with the same number of repeats.
        """
        from tpcal.calibrate.bench.slowdown_tests import (  # they load scipy
            hidden,
            sentences,
            slower,
        )

        found, (share, where) = slower(cells), hidden(cells)
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            model=subject if isinstance(subject, ModelFacts) else None,
            geometry=None if isinstance(subject, ModelFacts) else dict(subject),
            machine=machine,
            repeats=len(cells[0].unpruned.repeats),
            cells=tuple(map(CellResult.of, cells, found)),
            slower=tuple(sentences(cells, found)),
            hidden_slowdown=HiddenSlowdown(share, where) if where else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The results as plain data, with ``model`` or ``geometry``; missing values are None."""
        data = {**asdict(self), "cells": [cell.to_json() for cell in self.cells]}
        del data["geometry" if self.geometry is None else "model"]
        return data

    @classmethod
    def from_json(cls, data: Any) -> BenchResults:
        """The results in the data of a file.

        Raises:
            KeyError: A key is missing.
            ValueError: A value cannot be a result. Data of another form raises TypeError or
                AttributeError.
        """
        model, most = data.get("model"), data.get("hidden_slowdown")
        return cls(
            time=str(data["time"]),
            model=None if model is None else ModelFacts.from_json(model),
            geometry=None if model else {str(k): v for k, v in data["geometry"].items()},
            machine=Machine.from_json(data["machine"]),
            repeats=int(number(data["repeats"])),
            cells=tuple(map(CellResult.from_json, _some(data["cells"], "cells"))),
            slower=tuple(map(str, data["slower"])),
            hidden_slowdown=None if most is None else HiddenSlowdown.from_json(most),
        )

    @classmethod
    def load(cls, path: Path) -> BenchResults:
        """The results in a file that `tpcal bench -o FILE.json` wrote.

        Raises:
            UsageError: If the file is missing or holds something else.
        """
        return read_json(path, "bench", cls.from_json)

    @property
    def name(self) -> str:
        """The name of the model, or of the size of random weights."""
        if self.model is not None:
            return self.model.name
        facts = self.geometry or {}
        return str(facts.get("name") or ", ".join(map(str, facts.values())))


def _some(data: Any, what: str) -> Any:
    if not data:
        raise ValueError(f"it has no {what}")
    return data
