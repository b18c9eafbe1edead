"""The results of `tpcal eval` as records, which know their JSON.

The tables of `eval`, its JSON file and the report all show these records. The fields of a record
are the keys of its JSON, so a new result is a field here and a column where it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.evaluation.shares import ACCURACY, AGREEMENT, MeasuredCost, Share, Test
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.calibrate.inputs.sample_facts import SampleFacts
from tpcal.plans.json_files import number, optional_text, read_json

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.accuracy import Row
    from tpcal.calibrate.evaluation.compare import Comparison, Entry

PLAN, PUBLISHED, CONTROL = KINDS = ("plan", "preset", "control")
_PRESET = "preset:"


@dataclass(frozen=True)
class UnprunedGroup:
    """The unpruned model on one group."""

    n: int
    """Number of samples."""
    accuracy: Share | None
    """None if no sample has a right answer."""

    @classmethod
    def from_json(cls, data: Any) -> UnprunedGroup:
        """The result in a file."""
        return cls(int(number(data["n"])), _share(data["accuracy"]))


@dataclass(frozen=True)
class UnprunedResult:
    """The unpruned model on all samples, and on each group."""

    accuracy: Share | None
    """None if no sample has a right answer."""
    groups: Mapping[str, UnprunedGroup]
    f1: Mapping[str, float] = field(default_factory=dict)
    """F1 of the answer yes, by the groups that ``yes_no`` scores."""

    @classmethod
    def of(cls, comparison: Comparison) -> UnprunedResult:
        """The result of the unpruned model in a comparison."""
        *groups, whole = comparison.unpruned.rows()
        by_group = {row.group: UnprunedGroup(row.n, row.unpruned) for row in groups}
        f1 = {row.group: row.f1_unpruned for row in groups if row.f1_unpruned is not None}
        return cls(whole.unpruned, by_group, f1)

    @classmethod
    def from_json(cls, data: Any) -> UnprunedResult:
        """The result in a file."""
        groups = {str(g): UnprunedGroup.from_json(v) for g, v in data["groups"].items()}
        return cls(_share(data["accuracy"]), groups, _f1(data))


@dataclass(frozen=True)
class GroupResult:
    """A plan or control on one group."""

    n: int
    """Number of samples."""
    accuracy: Share | None
    """None if no sample has a right answer."""
    difference: Share | None
    """Accuracy minus that of the unpruned model, over the same samples."""
    agreement: Share | None
    """Share of samples with the answer of the unpruned model."""

    @classmethod
    def of(cls, row: Row) -> GroupResult:
        """The result of a group."""
        return cls(row.n, row.plan, row.difference, row.agreement)

    @classmethod
    def from_json(cls, data: Any) -> GroupResult:
        """The result in a file."""
        return cls(int(number(data["n"])), *_quality(data))


@dataclass(frozen=True)
class WorstGroup:
    """The group of lowest accuracy, or of lowest agreement if no sample has a right answer."""

    group: str
    value: float

    @classmethod
    def from_json(cls, data: Any) -> WorstGroup:
        """The group in a file."""
        return cls(str(data["group"]), number(data["value"]))


@dataclass(frozen=True)
class EntryResult:
    """A plan, a published schedule or a control: its cost, and its answers on all samples."""

    name: str
    kind: str
    """``plan``, ``preset`` or ``control``."""
    beside: str | None
    """The plan whose cost a control has; None for a plan."""
    shared: bool
    """Whether an earlier plan has the same control."""
    cost: MeasuredCost
    accuracy: Share | None
    difference: Share | None
    agreement: Share | None
    worst_group: WorstGroup | None
    groups: Mapping[str, GroupResult]
    f1: Mapping[str, float] = field(default_factory=dict)
    """F1 of the answer yes, by the groups that ``yes_no`` scores."""

    @classmethod
    def of(cls, entry: Entry) -> EntryResult:
        """The result of an entry of a comparison."""
        rows = entry.evaluation.rows()
        *groups, whole = map(GroupResult.of, rows)
        worst = entry.worst()
        published = PUBLISHED if entry.name.startswith(_PRESET) else PLAN
        return cls(
            name=entry.name,
            kind=CONTROL if entry.beside else published,
            beside=entry.beside,
            shared=entry.shared,
            cost=entry.cost,
            accuracy=whole.accuracy,
            difference=whole.difference,
            agreement=whole.agreement,
            worst_group=WorstGroup(*worst) if worst else None,
            groups=dict(zip(entry.evaluation.groups, groups, strict=True)),
            f1={row.group: row.f1_plan for row in rows[:-1] if row.f1_plan is not None},
        )

    @classmethod
    def from_json(cls, data: Any) -> EntryResult:
        """The result in a file; older files do not tell which controls are shared."""
        cost, worst = MeasuredCost.from_json(data["cost"]), data["worst_group"]
        if data["kind"] not in KINDS:
            raise ValueError(f"{data['kind']!r} is not one of {', '.join(KINDS)}")
        return cls(
            str(data["name"]),
            str(data["kind"]),
            optional_text(data.get("beside")),
            bool(data.get("shared", False)),
            cost,
            *_quality(data),
            worst_group=None if worst is None else WorstGroup.from_json(worst),
            groups={str(g): GroupResult.from_json(v) for g, v in data["groups"].items()},
            f1=_f1(data),
        )

    @property
    def short(self) -> str:
        """The name in tables: `random`, `divprune@0.22`."""
        return short_name(self.name, self.beside)

    @property
    def keep(self) -> float:
        """The layer-average keep, as measured."""
        return self.cost.layer_average_keep

    @property
    def value(self) -> Share | None:
        """The accuracy, or the agreement if no sample has a right answer."""
        return self.accuracy or self.agreement

    def value_of(self, group: str) -> Share | None:
        """The accuracy on a group, or the agreement if no sample of any group has an answer."""
        result = self.groups.get(group)
        if result is None:
            return None
        return result.agreement if self.accuracy is None else result.accuracy


@dataclass(frozen=True)
class EvaluationResults:
    """All results of `tpcal eval`: the unpruned model, and the plans followed by their controls.

    Shares are in [0, 1]. The keys of the JSON are the fields of the records.

    Example:
        >>> results = tpcal.evaluate("plan.yaml").results  # doctest: +SKIP
        >>> EvaluationResults.from_json(results.to_json()) == results  # doctest: +SKIP
        True
    """

    time: str
    """When the evaluation ended, in ISO 8601."""
    model: ModelFacts
    data: SampleFacts
    unpruned: UnprunedResult
    entries: tuple[EntryResult, ...]
    tests: tuple[Test, ...]
    impossible: Mapping[str, str]
    """Reasons by the names of the controls that this model cannot carry out."""

    @classmethod
    def of(cls, comparison: Comparison, model: ModelFacts, data: SampleFacts) -> EvaluationResults:
        """The results of a comparison that has just ended."""
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model,
            data=data,
            unpruned=UnprunedResult.of(comparison),
            entries=tuple(map(EntryResult.of, comparison.entries)),
            tests=comparison.tests,
            impossible=dict(comparison.impossible),
        )

    def to_json(self) -> dict[str, Any]:
        """The results as plain data; missing values are None."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> EvaluationResults:
        """The results in the data of a file.

        Raises:
            KeyError: A key is missing.
            ValueError: A value cannot be a result. Data of another form raises TypeError or
                AttributeError.
        """
        return cls(
            time=str(data["time"]),
            model=ModelFacts.from_json(data["model"]),
            data=SampleFacts.from_json(data["data"]),
            unpruned=UnprunedResult.from_json(data["unpruned"]),
            entries=tuple(map(EntryResult.from_json, data["entries"])),
            tests=tuple(map(Test.from_json, data["tests"])),
            impossible={str(k): str(v) for k, v in data.get("impossible", {}).items()},
        )

    @classmethod
    def load(cls, path: Path) -> EvaluationResults:
        """The results in a file that `tpcal eval -o FILE.json` wrote.

        Raises:
            UsageError: If the file is missing or holds something else.
        """
        return read_json(path, "eval", cls.from_json)

    @property
    def measure(self) -> str:
        """The measure in which entries are compared, ``accuracy`` or ``agreement``."""
        return AGREEMENT if self.unpruned.accuracy is None else ACCURACY

    @property
    def plans(self) -> tuple[EntryResult, ...]:
        """The entries of plans and published schedules, without controls."""
        return tuple(entry for entry in self.entries if entry.kind != CONTROL)

    def controls(self, plan: str) -> tuple[EntryResult, ...]:
        """The controls of one plan."""
        return tuple(e for e in self.entries if e.kind == CONTROL and e.beside == plan)


def short_name(name: str, beside: str | None = None) -> str:
    """A name without its `preset:`, and of a control without its plan."""
    return name.removesuffix(f" = {beside}").removeprefix(_PRESET)


def _quality(data: Any) -> tuple[Share | None, Share | None, Share | None]:
    """Accuracy, difference and agreement."""
    difference = _share(data["difference"], least=-1.0)
    return _share(data["accuracy"]), difference, _share(data["agreement"])


def _f1(data: Any) -> dict[str, float]:
    """F1 by group; older files have none."""
    return {str(group): number(value) for group, value in data.get("f1", {}).items()}


def _share(data: Any, least: float = 0.0) -> Share | None:
    return None if data is None else Share.from_json(data, least)
