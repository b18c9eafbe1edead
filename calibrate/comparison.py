"""Plans and controls side by side: the same samples, measured costs, paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tpcal.calibrate.answered import Answered, InMemory, Kept, answer_all
from tpcal.calibrate.controls import control
from tpcal.calibrate.evaluate import Evaluation, compare_all
from tpcal.calibrate.models import Loaded
from tpcal.calibrate.paired import Pair, Test, paired_tests
from tpcal.calibrate.samples import Samples
from tpcal.calibrate.shares import Array
from tpcal.calibrate.ways import UNCUT, Impossible, Pruned, Redrawn, Way
from tpcal.plans.cost import (
    DecoderShape,
    kv_bytes,
    layer_average_keep,
    prefill_flops,
    selection_flops,
)
from tpcal.plans.schema import Plan

UNPRUNED = "unpruned"
ACCURACY, AGREEMENT = "accuracy", "agreement"
Progress = Callable[[int, int, str], None]
Answers = tuple[Answered, ...]


@dataclass(frozen=True)
class Measured:
    """What answering took, by the tokens that were really there; means over the samples."""

    layer_average_keep: float = 1.0
    prefill_flops: float = 1.0
    """As a share of the unpruned model's; choosing the tokens included."""
    kv_bytes: float = 1.0
    """As a share of the unpruned model's."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One way to answer, judged."""

    name: str
    beside: str | None
    """Of a control: the plan whose cost it has."""
    control: str | None
    """Of a control: its kind."""
    shared: bool
    """Of a control: an earlier plan has the very same."""
    cost: Measured
    evaluation: Evaluation

    def worst(self) -> tuple[str, float] | None:
        """The group of the lowest accuracy, or agreement where no sample has an answer."""
        rows = self.evaluation.rows()[:-1]
        parts = [(row.group, part) for row in rows if (part := row.plan)]
        parts = parts or [(row.group, part) for row in rows if (part := row.agreement)]
        found = [(group, part.value) for group, part in parts]
        return min(found, key=lambda pair: pair[1]) if found else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """The unpruned model, plans and, behind each plan, its controls."""

    unpruned: Evaluation
    entries: tuple[Entry, ...]
    tests: tuple[Test, ...]
    impossible: Mapping[str, str]
    """Controls that this model cannot carry out -> why."""

    @property
    def plans(self) -> tuple[Entry, ...]:
        """Without controls."""
        return tuple(entry for entry in self.entries if entry.beside is None)

    @property
    def measure(self) -> str:
        """What entries are compared in."""
        return ACCURACY if self.unpruned.answered.any() else AGREEMENT

    def controls(self, plan: str) -> tuple[Entry, ...]:
        """Those of one plan."""
        return tuple(entry for entry in self.entries if entry.beside == plan)


def compare_plans(
    loaded: Loaded,
    samples: Samples,
    plans: Mapping[str, Plan],
    *,
    controls: Sequence[str] = (),
    kept: Callable[[Way], Kept] = lambda way: InMemory(),
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> Comparison:
    """Greedy answers of the unpruned model, of every plan, and of every plan's controls.

    The unpruned model answers once. A control costs at most what its plan was measured to cost on
    these very samples; two plans of the same cost share the answers of their controls.

    Args:
        loaded: The model, with no plan applied.
        samples: Questions; where none has an answer, the agreement with the unpruned model counts.
        plans: By name; none judges the unpruned model alone.
        controls: Of `tpcal.calibrate.controls.CONTROLS`.
        kept: Where the answers of a way are, and go.
        batch_size: Samples per run of the model.
        max_new_tokens: Longest answer.
        progress: Told of answers given, answers in all and what is going on.

    Raises:
        FitError: A plan does not fit the model.
        RunFailed: Out of memory.
    """
    n, report = len(samples), progress or (lambda done, total, what: None)

    def answered(ways: Sequence[Way], what: str) -> list[Answers]:
        return answer_all(
            loaded,
            samples,
            [(way, kept(way)) for way in ways],
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=lambda done: report(done, n * len(ways), what),
        )

    what = "With and without plans" if plans else "Unpruned"
    unpruned, *pruned = answered([Pruned(), *map(Pruned, plans.values())], what)
    n_visual = [answer.n_visual for answer in unpruned]
    given: list[_Given] = []
    impossible: dict[str, str] = {}
    known: dict[str, Answers] = {}
    for (name, plan), own in zip(plans.items(), pruned, strict=True):
        cost = measured(loaded.shape, plan, own, unpruned)
        given.append(_Given(name, None, None, False, cost, own))
        for kind in controls:
            called, target = f"{kind} = {name}", cost.layer_average_keep
            try:
                way = control(kind, target, loaded, samples, n_visual, batch_size)
                key = str(way.key)
                shared = key in known
                if not shared:
                    (known[key],) = answered([way], f"Control {kind}")
            except Impossible as error:
                impossible[called] = str(error)
                continue
            cut = way.plan if isinstance(way, Pruned | Redrawn) else UNCUT
            cost_of_it = measured(loaded.shape, cut, known[key], unpruned)
            given.append(_Given(called, name, kind, shared, cost_of_it, known[key]))
    alone, *judged = compare_all(samples, _texts(unpruned), [_texts(one.answers) for one in given])
    entries = tuple(
        Entry(*one[:-1], evaluation) for one, evaluation in zip(given, judged, strict=True)
    )
    return Comparison(alone, entries, paired_tests(list(_pairs(entries))), impossible)


class _Given(NamedTuple):
    """An entry that is not judged yet."""

    name: str
    beside: str | None
    control: str | None
    shared: bool
    cost: Measured
    answers: Answers


def _texts(answers: Answers) -> list[str]:
    return [answer.text for answer in answers]


def measured(
    shape: DecoderShape, plan: Plan, answers: Sequence[Answered], unpruned: Sequence[Answered]
) -> Measured:
    """The cost of answers beside that of the unpruned model's to the same samples.

    Tokens are those that were counted in every layer. What choosing them computes is arithmetic
    (`tpcal.plans.cost.selection_flops`) and an upper bound.

    Args:
        shape: Widths of the decoder.
        plan: With which the answers were given.
        answers: [n].
        unpruned: [n]. Samples without visual tokens count for nothing in the layer average.
    """
    pairs = zip(answers, unpruned, strict=True)
    alike = Counter((replace(a, text=""), replace(u, text="")) for a, u in pairs)
    keeps, times, sums = [], [], np.zeros((2, 2))
    for (mine, full), m in alike.items():
        entering = mine.schedule(shape.n_layers)
        if full.n_visual:
            keeps.append(layer_average_keep(entering, full.n_visual))
            times.append(m)
        choosing = selection_flops(plan, shape, mine.n_visual, mine.n_text)
        tokens = [[n + x.n_text for n in x.schedule(shape.n_layers)] for x in (mine, full)]
        flops = [prefill_flops(shape, n) for n in tokens]
        sums += m * np.array(
            [[flops[0] + choosing, flops[1]], [kv_bytes(shape, n) for n in tokens]]
        )
    flops_share, kv_share = (sums[:, 0] / sums[:, 1]).tolist()
    keep = float(np.average(keeps, weights=times)) if keeps else 1.0
    return Measured(keep, flops_share, kv_share)


def _pairs(entries: Sequence[Entry]) -> Iterator[Pair]:
    """Every plan beside the unpruned model, its controls and every other plan."""
    plans = [entry for entry in entries if entry.beside is None]
    for plan in plans:
        scored = plan.evaluation.answered
        if scored.any():
            before = plan.evaluation.correct_unpruned[scored]
            yield Pair(plan.name, UNPRUNED, ACCURACY, _hits(plan), before)
        for other in entries:
            if other.beside == plan.name:
                yield _pair(plan, other)
    for one, other in combinations(plans, 2):
        yield _pair(one, other)


def _pair(one: Entry, other: Entry) -> Pair:
    measure = ACCURACY if one.evaluation.answered.any() else AGREEMENT
    return Pair(one.name, other.name, measure, _hits(one), _hits(other))


def _hits(entry: Entry) -> Array:
    """Of the samples with an answer, which are right; of none, which agree."""
    judged = entry.evaluation
    assert judged.correct_plan is not None
    assert judged.agree is not None
    return judged.correct_plan[judged.answered] if judged.answered.any() else judged.agree
