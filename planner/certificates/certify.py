"""Proofs on samples that no search has seen: answers with and without plans, then the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.evaluation.accuracy import answers, compare
from tpcal.calibrate.inputs.models import weights_digest
from tpcal.calibrate.inputs.sample_digests import unpack
from tpcal.planner.certificates.binomial import (
    Changed,
    Promise,
    changed_by_group,
    last_promised,
)
from tpcal.planner.certificates.judged import Judged, name_of
from tpcal.plans.errors import UsageError
from tpcal.plans.schema import Plan

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples

Progress = Callable[[int, int, str], None]


def prove(
    plans: Sequence[Plan],
    promise: Promise,
    loaded: Loaded,
    samples: Samples,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
    judged: Judged | None = None,
) -> Plan:
    """The last plan of a row that can be promised with all before it, with its certificate.

    Every plan of the row is tested at the same level, as testing stops at the first that fails:
    the chance that the plan that comes out breaks the promise is at most that level
    (`first_failure`). With ``judged`` the level is what is left by all that was judged on these
    samples before, so that the chance is at most 1 - confidence however often this is called.
    Without, it is 1 - confidence for one call alone. The model runs once without a plan and once
    for each plan tested.

    Args:
        plans: In an order that does not depend on the samples: the dearest first.
        promise: What has to hold.
        loaded: The model, with no plan applied.
        samples: None of which calibration or search have seen.
        batch_size: Samples per run of the model.
        max_new_tokens: Longest answer; two that agree so far count as equal.
        progress: Told of answers given, answers in all and what is going on.
        judged: What was judged before; this is added to it.

    Raises:
        GuardrailError: Not even the first can be promised; says how many samples would be needed.
        UsageError: Samples that were seen, or a number out of range.
        FitError: A plan does not fit the model.
    """
    for plan in plans:
        check_unseen(plan, samples)
    row = name_of(plans, weights_digest(loaded.model)) if judged else ""
    test = _test(plans, promise, samples, max_new_tokens)
    if judged is not None:
        promise = replace(promise, place=judged.place(row, samples, test))
    promise.check_samples(samples)
    if judged is not None:  # from here on it counts, whatever comes out
        promise = replace(promise, place=judged.take(row, samples, test))
    limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    total, report = (1 + len(plans)) * len(samples), progress or (lambda done, of, what: None)
    unpruned = answers(loaded, samples, None, **limits, progress=_after(0, total, report))

    def each() -> Iterator[Mapping[str, Changed]]:
        for i, plan in enumerate(plans, 1):
            told = _after(i * len(samples), total, report)
            pruned = answers(loaded, samples, plan, **limits, progress=told)
            yield changed_by_group(compare(samples, unpruned, pruned))

    at, proven = last_promised(
        each(),
        promise.max_flips,
        promise.confidence,
        each_group=promise.each_group,
        place=promise.place,
    )
    proven = replace(proven, data=samples.description, fingerprint=samples.fingerprint)
    return replace(plans[at], certificate=proven)


def _test(
    plans: Sequence[Plan], promise: Promise, samples: Samples, max_new_tokens: int
) -> dict[str, Any]:
    """What tells one test of the same plans from another.

    A single plan passes for every limit above one figure, so its tests at several limits are one.
    In a row another limit is broken by another plan.
    """
    limit = {"max_flips": promise.max_flips} if len(plans) > 1 else {}
    return {
        "samples": samples.fingerprint,
        "each_group": promise.each_group,
        "max_new_tokens": max_new_tokens,
        **limit,
    }


def check_unseen(plan: Plan, samples: Samples) -> None:
    """Nothing, where no sample was looked at to make the plan.

    A plan that was not made from samples, as a published one, has seen none.

    Raises:
        UsageError: Some were, or the plan does not say.
    """
    if "profile" not in plan.provenance:
        return
    try:
        seen = unpack(plan.provenance["data"]["seen"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            "The plan must say which samples it was made from (its key `seen`); got none. "
            "Make it again with tpcal plan."
        ) from None
    n_seen = sum(identity in seen for identity in samples.identities)
    if n_seen:
        raise UsageError(
            f"Samples of a proof must be new; got {n_seen} of {len(samples)} that calibration or "
            f"search looked at ({samples.description}). Take fewer, or name others with --split, "
            "--data or --seed."
        )


def _after(start: int, total: int, report: Progress) -> Callable[[int], None]:
    what = "With the plan" if start else "Unpruned"
    return lambda done: report(start + done, total, what)
