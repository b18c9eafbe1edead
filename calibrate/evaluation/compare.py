"""Comparison of plans and controls: on the same samples, by measured costs and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from tpcal.calibrate.evaluation.accuracy import Evaluation, compare_all
from tpcal.calibrate.evaluation.controls import PlanBeside, control
from tpcal.calibrate.evaluation.generate import Answered, AnswerStore, InMemory, answer_all
from tpcal.calibrate.evaluation.intervals import Array
from tpcal.calibrate.evaluation.measured_cost import measured
from tpcal.calibrate.evaluation.paired_tests import Pair, paired_tests
from tpcal.calibrate.evaluation.seen_samples import EVALUATION, refuse_seen
from tpcal.calibrate.evaluation.shares import ACCURACY, AGREEMENT, MeasuredCost, Test
from tpcal.calibrate.evaluation.variants import Impossible, Pruned, RandomlyPruned, Variant
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import UNCUT, Plan
from tpcal.plans.progress import Progress

UNPRUNED = "unpruned"
Answers = tuple[Answered, ...]


@dataclass(frozen=True, eq=False)
class Entry:
    """The evaluation and cost of one plan or control."""

    name: str
    beside: str | None
    """The plan whose cost a control has; None for a plan."""
    control: str | None
    """The kind of a control; None for a plan."""
    shared: bool
    """Whether an earlier plan has the same control."""
    cost: MeasuredCost
    evaluation: Evaluation

    def worst(self) -> tuple[str, float] | None:
        """The group of lowest accuracy, with that accuracy; None if there are no groups.

        If no sample has an answer, the agreement with the unpruned model takes its place.
        """
        rows = self.evaluation.rows()[:-1]
        parts = [(row.group, part) for row in rows if (part := row.plan)]
        parts = parts or [(row.group, part) for row in rows if (part := row.agreement)]
        found = [(group, part.value) for group, part in parts]
        return min(found, key=lambda pair: pair[1]) if found else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The unpruned model and the plans, each followed by its controls."""

    unpruned: Evaluation
    entries: tuple[Entry, ...]
    tests: tuple[Test, ...]
    impossible: Mapping[str, str]
    """Reasons by the names of the controls that this model cannot carry out."""

    @property
    def plans(self) -> tuple[Entry, ...]:
        """The entries of plans, without controls."""
        return tuple(entry for entry in self.entries if entry.beside is None)

    @property
    def measure(self) -> str:
        """The measure in which entries are compared, ``accuracy`` or ``agreement``."""
        return ACCURACY if self.unpruned.answered.any() else AGREEMENT

    def controls(self, plan: str) -> tuple[Entry, ...]:
        """The controls of one plan."""
        return tuple(entry for entry in self.entries if entry.beside == plan)


@dataclass(frozen=True)
class ComparisonSettings:
    """What plans are compared with, and how the answers are generated.

    Example:
        >>> from tpcal.calibrate.evaluation.compare import ComparisonSettings
        >>> ComparisonSettings(controls=("random", "grid"), max_new_tokens=64).batch_size
        32
    """

    controls: Sequence[str] = ()
    """Names from `tpcal.calibrate.evaluation.controls.CONTROLS`."""
    controls_of: Collection[str] | None = None
    """Plans whose controls run; None runs those of all plans."""
    tested: Collection[str] | None = None
    """Plans that are tested against the unpruned model, their controls and every other plan; None
    tests all plans. The fewer tests, the smaller the differences they can detect."""
    allow_seen: bool = False
    """Whether samples that a plan was made from are used too."""
    batch_size: int = 32
    """Samples per run of the model."""
    max_new_tokens: int = 16
    """Length limit of an answer in tokens."""


def compare_plans(
    loaded: Loaded,
    samples: Samples,
    plans: Mapping[str, Plan],
    *,
    settings: ComparisonSettings | None = None,
    kept: Callable[[Variant], AnswerStore] = lambda variant: InMemory(),
    progress: Progress | None = None,
) -> Comparison:
    """Compares greedy answers of the unpruned model, of every plan, and of every plan's controls.

    The unpruned model answers once. A control costs at most what its plan was measured to cost on
    the same samples; two plans of the same cost share the answers of their controls.

    Args:
        loaded: The model, with no plan applied.
        samples: The questions. If none has an answer, agreement with the unpruned model counts.
        plans: Plans by name; without any, the unpruned model alone is judged.
        settings: Controls, tests and the generation of answers.
        kept: Gives the store that holds the answers of a variant.
        progress: Called with answers given, answers in all and a description of the step.

    Raises:
        UsageError: A plan was made from some of the samples.
        FitError: A plan does not fit the model.
        RunFailed: Out of memory.

    Example:
        >>> found = compare_plans(loaded, samples, {"light": plan})  # doctest: +SKIP
        >>> found.plans[0].evaluation.overall.difference  # doctest: +SKIP
    """
    settings = settings or ComparisonSettings()
    # Step 1: refuse samples that a plan was made from, and plans that do not fit.
    if not settings.allow_seen:
        refuse_seen(plans, samples, EVALUATION)
    for plan in plans.values():
        apply(loaded.model, plan).remove()
    n, report = len(samples), progress or (lambda done, total, what: None)

    def answered(variants: Sequence[Variant], what: str) -> list[Answers]:
        return answer_all(
            loaded,
            samples,
            [(variant, kept(variant)) for variant in variants],
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            progress=lambda done: report(done, n * len(variants), what),
        )

    # Step 2: the unpruned model and all plans answer, batch by batch in turn.
    what = "With and without plans" if plans else "Unpruned"
    unpruned, *pruned = answered([Pruned(), *map(Pruned, plans.values())], what)
    # Step 3: measure what each plan cost on these samples, then let its controls answer at that
    # cost.
    beside = _Controls(loaded, samples, unpruned, answered, settings.batch_size)
    given: list[_Given] = []
    for (name, plan), own in zip(plans.items(), pruned, strict=True):
        cost = measured(loaded.shape, plan, own, unpruned)
        given.append(_Given(name, None, None, False, cost, own))
        if settings.controls_of is None or name in settings.controls_of:
            given += beside.controls(given[-1], plan.scope, settings.controls)
    # Step 4: judge all answers, and test the differences.
    alone, *judged = compare_all(samples, _texts(unpruned), [_texts(one.answers) for one in given])
    entries = tuple(
        Entry(*one[:-1], evaluation) for one, evaluation in zip(given, judged, strict=True)
    )
    pairs = list(_pairs(entries, plans if settings.tested is None else settings.tested))
    return Comparison(alone, entries, paired_tests(pairs), beside.impossible)


class _Given(NamedTuple):
    """An entry that is not judged yet."""

    name: str
    beside: str | None
    control: str | None
    shared: bool
    cost: MeasuredCost
    answers: Answers


class _Controls:
    """The controls of all plans; each answers once, even if several plans have its cost."""

    def __init__(
        self,
        loaded: Loaded,
        samples: Samples,
        unpruned: Answers,
        answered: Callable[[Sequence[Variant], str], list[Answers]],
        batch_size: int,
    ) -> None:
        self._loaded, self._samples, self._unpruned = loaded, samples, unpruned
        self._answered, self._batch_size = answered, batch_size
        self._known: dict[str, Answers] = {}
        self.impossible: dict[str, str] = {}

    def controls(self, plan: _Given, scope: str, kinds: Sequence[str]) -> Iterator[_Given]:
        """The controls at the plan's cost and in its scope that this model can carry out."""
        for kind in kinds:
            name = f"{kind} = {plan.name}"
            try:
                yield self._control(kind, name, plan, scope)
            except Impossible as error:
                self.impossible[name] = str(error)

    def _control(self, kind: str, name: str, plan: _Given, scope: str) -> _Given:
        n_visual = [answer.images or answer.n_visual for answer in plan.answers]
        beside = PlanBeside(plan.cost.layer_average_keep, n_visual, scope)
        variant = control(kind, beside, self._loaded, self._samples, self._batch_size)
        key = str(variant.key)
        shared = key in self._known
        if not shared:
            (self._known[key],) = self._answered([variant], f"Control {kind}")
        cut = variant.plan if isinstance(variant, Pruned | RandomlyPruned) else UNCUT
        cost = measured(self._loaded.shape, cut, self._known[key], self._unpruned)
        return _Given(name, plan.name, kind, shared, cost, self._known[key])


def _texts(answers: Answers) -> list[str]:
    return [answer.text for answer in answers]


def _pairs(entries: Sequence[Entry], tested: Collection[str]) -> Iterator[Pair]:
    """Pairs every tested plan once with the unpruned model, its controls and every other plan."""
    plans = [entry for entry in entries if entry.beside is None]
    for plan in plans:
        if plan.name not in tested:
            continue
        scored = plan.evaluation.answered
        if scored.any():
            before = plan.evaluation.correct_unpruned[scored]
            yield Pair(plan.name, UNPRUNED, ACCURACY, _hits(plan), before)
        for other in entries:
            if other.beside == plan.name:
                yield _pair(plan, other)
    for one, other in combinations(plans, 2):
        if one.name in tested:
            yield _pair(one, other)
        elif other.name in tested:
            yield _pair(other, one)


def _pair(one: Entry, other: Entry) -> Pair:
    measure = ACCURACY if one.evaluation.answered.any() else AGREEMENT
    return Pair(one.name, other.name, measure, _hits(one), _hits(other))


def _hits(entry: Entry) -> Array:
    """[n] bool: which answers are right, over samples with an answer.

    If no sample has an answer, it says which answers agree with the unpruned model's.
    """
    judged = entry.evaluation
    assert judged.correct_plan is not None
    assert judged.agree is not None
    return judged.correct_plan[judged.answered] if judged.answered.any() else judged.agree
