"""Accuracy of answers with a plan and without, per group, and how often the two agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tpcal.calibrate.evaluation.generate import InMemory, answer_all
from tpcal.calibrate.evaluation.intervals import Array, paired_difference, share
from tpcal.calibrate.evaluation.metrics import is_right, normalise
from tpcal.calibrate.evaluation.shares import Share
from tpcal.calibrate.evaluation.variants import Pruned
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.plan_records import Plan

OVERALL = "overall"


@dataclass(frozen=True)
class Row:
    """The results of one group, or of all samples (``overall``).

    A share is None if it has no samples, or if there is no plan.
    """

    group: str
    n: int
    """Number of samples."""
    n_answered: int
    """Number of samples for which the data has an answer; accuracies are over these."""
    unpruned: Share | None
    """Accuracy of the unpruned model."""
    plan: Share | None
    """Accuracy with the plan."""
    difference: Share | None
    """Accuracy with the plan minus accuracy without, over the same samples."""
    agreement: Share | None
    """Share of samples for which both give the same answer."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The judged answers of every sample. Arrays are [n] bool unless stated otherwise."""

    groups: tuple[str, ...]
    sample_group: Array  # [n] int64, index into groups
    answered: Array  # the data has an answer
    correct_unpruned: Array  # False for samples that are not answered
    correct_plan: Array | None  # None without a plan
    agree: Array | None  # whether both answers are the same; None without a plan
    answers_unpruned: tuple[str, ...]
    answers_plan: tuple[str, ...] | None

    def rows(self) -> tuple[Row, ...]:
        """One row per group and, last, one over all samples."""
        return self._rows

    @property
    def overall(self) -> Row:
        """The row over all samples."""
        return self._rows[-1]

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        rows = [self._row(g, self.sample_group == i) for i, g in enumerate(self.groups)]
        return (*rows, self._row(OVERALL, np.ones(len(self.sample_group), dtype=bool)))

    def _row(self, group: str, members: Array) -> Row:
        scored = members & self.answered
        before = self.correct_unpruned[scored]
        after = None if self.correct_plan is None else self.correct_plan[scored]
        agree = None if self.agree is None else self.agree[members]
        return Row(
            group=group,
            n=int(members.sum()),
            n_answered=int(scored.sum()),
            unpruned=share(before),
            plan=None if after is None else share(after),
            difference=None if after is None else paired_difference(before, after),
            agreement=None if agree is None else share(agree),
        )


def answers(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """[n] greedy answers, with the plan or without.

    Args:
        loaded: The model, with no plan applied.
        samples: n questions.
        plan: The plan; None runs the model unpruned.
        batch_size: Samples per run of the model.
        max_new_tokens: Longest answer, in tokens.
        progress: Called with the number of answers there are, after each batch.

    Raises:
        FitError: The plan does not fit the model.
        RunFailed: Out of memory.

    Example:
        >>> unpruned = answers(loaded, samples, None)  # doctest: +SKIP
        >>> pruned = answers(loaded, samples, plan)  # doctest: +SKIP
        >>> compare(samples, unpruned, pruned).overall.difference  # doctest: +SKIP
    """
    (given,) = answer_all(
        loaded,
        samples,
        [(Pruned(plan or Plan()), InMemory())],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    return tuple(answer.text for answer in given)


def compare(
    samples: Samples, unpruned: Sequence[str], pruned: Sequence[str] | None = None
) -> Evaluation:
    """The evaluation of given answers.

    Args:
        samples: n questions.
        unpruned: [n] answers of the unpruned model.
        pruned: [n] answers with a plan; None judges the unpruned model alone.
    """
    alone, *beside = compare_all(samples, unpruned, [] if pruned is None else [pruned])
    return beside[0] if beside else alone


def compare_all(
    samples: Samples, unpruned: Sequence[str], pruned: Sequence[Sequence[str]]
) -> list[Evaluation]:
    """The evaluation of the unpruned model, then of every variant; samples are read once."""
    expected = [sample.answer for sample in samples]
    alone = Evaluation(
        groups=samples.groups,
        sample_group=np.array([samples.groups.index(g) for g in samples.sample_groups]),
        answered=np.array([answer is not None for answer in expected]),
        correct_unpruned=_right(unpruned, expected),
        correct_plan=None,
        agree=None,
        answers_unpruned=tuple(unpruned),
        answers_plan=None,
    )
    beside = [
        replace(
            alone,
            correct_plan=_right(given, expected),
            agree=_same(unpruned, given),
            answers_plan=tuple(given),
        )
        for given in pruned
    ]
    return [alone, *beside]


def _right(given: Sequence[str], expected: Sequence[str | None]) -> Array:
    pairs = zip(given, expected, strict=True)
    return np.array([want is not None and is_right(got, want) for got, want in pairs])


def _same(one: Sequence[str], other: Sequence[str]) -> Array:
    return np.array([normalise(a) == normalise(b) for a, b in zip(one, other, strict=True)])
