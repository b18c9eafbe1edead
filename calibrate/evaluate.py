"""Accuracy of a plan beside the unpruned model: real generation, paired samples, intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from tpcal.calibrate.answers import is_right, normalise
from tpcal.calibrate.batches import generate_ids, prompt_inputs
from tpcal.calibrate.memory import memory_guard
from tpcal.calibrate.models import Loaded
from tpcal.calibrate.samples import Samples
from tpcal.plans.execute import apply
from tpcal.plans.schema import Plan

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]
CONFIDENCE = 0.95
N_RESAMPLES = 2_000
OVERALL = "overall"


@dataclass(frozen=True)
class Share:
    """A share of samples, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """The figures of one group, or of all samples (``overall``). None where there is nothing."""

    group: str
    n: int
    """Samples."""
    n_answered: int
    """Samples the data has an answer for; accuracies are over these."""
    unpruned: Share | None
    """Accuracy of the unpruned model."""
    plan: Share | None
    """Accuracy with the plan."""
    difference: Share | None
    """Accuracy with the plan minus accuracy without, over the same samples."""
    agreement: Share | None
    """Samples where both give the same answer."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What each sample's answers were worth. Arrays are [n] bool."""

    groups: tuple[str, ...]
    sample_group: Array  # [n] int64, index into groups
    answered: Array  # the data has an answer
    correct_unpruned: Array  # False where not answered
    correct_plan: Array | None  # None without a plan
    agree: Array | None  # both answers are the same; None without a plan
    answers_unpruned: tuple[str, ...]
    answers_plan: tuple[str, ...] | None

    def rows(self) -> tuple[Row, ...]:
        """One row per group and, last, one over all samples."""
        rows = [self._row(g, self.sample_group == i) for i, g in enumerate(self.groups)]
        return (*rows, self.overall)

    @property
    def overall(self) -> Row:
        """The row over all samples."""
        return self._row(OVERALL, np.ones(len(self.sample_group), dtype=bool))

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


def evaluate(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None = None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy answers of the unpruned model and, inside `tpcal.apply`, of the pruned one.

    Args:
        loaded: The model, with no plan applied.
        samples: Questions; for those without an answer only the agreement of both models counts.
        plan: None evaluates the unpruned model alone.
        batch_size: Samples per run of the model.
        max_new_tokens: Longest answer.
        progress: Called with runs done, runs in all and what is going on.

    Raises:
        FitError: The plan does not fit the model.
        RunFailed: Out of memory.
    """
    n = len(samples)
    total = n if plan is None else 2 * n
    report = progress or (lambda done, total, what: None)
    size, limit = batch_size, max_new_tokens
    if plan is not None:
        apply(loaded.model, plan).remove()  # one that does not fit is refused before any run
    unpruned = answers(
        *(loaded, samples, None),
        batch_size=size,
        max_new_tokens=limit,
        progress=lambda done: report(done, total, "Unpruned"),
    )
    if plan is None:
        return compare(samples, unpruned)
    pruned = answers(
        *(loaded, samples, plan),
        batch_size=size,
        max_new_tokens=limit,
        progress=lambda done: report(n + done, total, "With the plan"),
    )
    return compare(samples, unpruned, pruned)


def answers(
    loaded: Loaded,
    samples: Samples,
    plan: Plan | None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """[n] greedy answers, with the plan or without; errors as `evaluate`."""
    given: list[str] = []
    tokenizer: Any = loaded.processor.tokenizer
    applied = nullcontext() if plan is None else apply(loaded.model, plan)
    with memory_guard("Evaluation", "Use a smaller --batch-size."), applied:
        for start in range(0, len(samples), batch_size):
            stop = min(start + batch_size, len(samples))
            batch = [samples[i] for i in range(start, stop)]
            prompts = prompt_inputs(loaded.processor, batch, loaded.model)
            ids = generate_ids(loaded.model, loaded.processor, prompts, max_new_tokens)
            given += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
            if progress:
                progress(stop)
    return tuple(given)


def compare(
    samples: Samples, unpruned: Sequence[str], pruned: Sequence[str] | None = None
) -> Evaluation:
    """The evaluation of answers that are at hand."""
    expected = [sample.answer for sample in samples]
    return Evaluation(
        groups=samples.groups,
        sample_group=np.array([samples.groups.index(g) for g in samples.sample_groups]),
        answered=np.array([answer is not None for answer in expected]),
        correct_unpruned=_right(unpruned, expected),
        correct_plan=None if pruned is None else _right(pruned, expected),
        agree=None if pruned is None else _same(unpruned, pruned),
        answers_unpruned=tuple(unpruned),
        answers_plan=None if pruned is None else tuple(pruned),
    )


def share(hits: Array) -> Share | None:
    """The share of hits with its Wilson interval; None for no samples.

    Source:
        Wilson 1927, as in scipy.stats.
    """
    if not len(hits):
        return None
    result = binomtest(int(hits.sum()), len(hits))
    interval = result.proportion_ci(CONFIDENCE, method="wilson")
    return Share(float(hits.mean()), float(interval.low), float(interval.high))


def paired_difference(before: Array, after: Array, *, seed: int = 0) -> Share | None:
    """Mean of ``after - before`` over the same samples, with a paired percentile bootstrap.

    Where every sample differs alike (as a rule: not at all) the bootstrap has no spread. Then
    the interval reaches as far as the exact binomial one for a change never seen in n samples.

    Args:
        before: [n] bool.
        after: [n] bool.
        seed: Of the resampling.
    """
    if not len(before):
        return None
    change = after.astype(float) - before.astype(float)
    value = float(change.mean())
    if np.ptp(change) == 0:
        unseen = binomtest(0, len(change)).proportion_ci(CONFIDENCE, method="exact").high
        return Share(value, max(value - unseen, -1.0), min(value + unseen, 1.0))
    interval = bootstrap(
        (after.astype(float), before.astype(float)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        paired=True,
        vectorized=True,
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Share(value, float(interval.low), float(interval.high))


def _right(given: Sequence[str], expected: Sequence[str | None]) -> Array:
    pairs = zip(given, expected, strict=True)
    return np.array([want is not None and is_right(got, want) for got, want in pairs])


def _same(one: Sequence[str], other: Sequence[str]) -> Array:
    return np.array([normalise(a) == normalise(b) for a, b in zip(one, other, strict=True)])
