"""Certification of plans: answers with and without each plan on unseen samples, then the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.evaluation.accuracy import answers, compare
from tpcal.calibrate.evaluation.seen_samples import PROOF, refuse_seen
from tpcal.calibrate.inputs.model_digests import weights_digest
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.planner.certificates.binomial import (
    Changed,
    Promise,
    changed_by_group,
    last_promised,
)
from tpcal.planner.certificates.judgement_record import JudgementRecord, name_of
from tpcal.plans.errors import UsageError, listed
from tpcal.plans.plan_file import with_certificate_digest
from tpcal.plans.plan_records import Plan
from tpcal.plans.progress import Progress

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples


@dataclass(frozen=True)
class ProofSettings:
    """How the answers of a proof are generated, and where the proof is recorded."""

    batch_size: int = 32
    """Samples per run of the model."""
    max_new_tokens: int = 16
    """Length limit of an answer in tokens; answers that are equal up to it count as equal."""
    judged: JudgementRecord | None = None
    """Record of the plans judged before; the plans of the proof are added to it."""


def prove(
    plans: Sequence[Plan],
    promise: Promise,
    loaded: Loaded,
    samples: Samples,
    *,
    settings: ProofSettings | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The last plan that passes the test together with all plans before it, with its certificate.

    The plans are tested in the given order until the first failure, all at the same level. The
    chance that the returned plan breaks the promise is at most that level (`first_failure`). If
    ``settings.judged`` is given, the level depends on the number of plans that were judged on
    these samples before, so the chance is at most 1 - confidence for all calls together.
    Otherwise, the chance is at most 1 - confidence for this call alone. The model answers all
    samples once without a plan and once with each tested plan.

    Args:
        plans: Plans in an order that does not depend on the samples: the most expensive one first.
        promise: Statement to prove.
        loaded: Model with no plan applied.
        samples: Samples that neither calibration nor search has seen.
        settings: How answers are generated, and the record of the plans judged before.
        progress: Called with the answers given, the answers in total, and the current step.

    Raises:
        GuardrailError: If the first plan fails; the message says how many samples are needed.
        UsageError: If a sample was seen, or a number is out of range.
        FitError: If a plan does not fit the model.
    """
    settings = settings or ProofSettings()
    judged, max_new_tokens = settings.judged, settings.max_new_tokens
    # Refuse samples that were used to make a plan, and samples that are too few for the level.
    for plan in plans:
        check_unseen(plan, samples)
        if promise.each_group:
            check_groups(plan, samples)
    row = name_of(plans, weights_digest(loaded.model)) if judged else ""
    test = _test(plans, promise, samples, max_new_tokens)
    if judged is not None:
        promise = replace(promise, place=judged.place(row, samples, test))
    promise.check_samples(samples)
    # Record the test before any answer is known, so that it counts whatever its result is.
    if judged is not None:
        promise = replace(promise, place=judged.take(row, samples, test))
    limits = {"batch_size": settings.batch_size, "max_new_tokens": max_new_tokens}
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
    proven = replace(
        proven,
        data=samples.description,
        fingerprint=samples.fingerprint,
        max_new_tokens=max_new_tokens,
        tested=pack(samples.identities),
    )
    return with_certificate_digest(replace(plans[at], certificate=proven))


def check_groups(plan: Plan, samples: Samples) -> None:
    """Checks that a proof of each group tests every group of the plan.

    Raises:
        UsageError: Only some of the groups that the plan states losses for have samples.
    """
    stated = () if plan.loss is None else plan.loss.measured or plan.loss.predicted
    missing = [group for group in stated if group not in samples.groups]
    if missing and len(missing) < len(stated):
        raise UsageError(
            f"Each group must have new samples; got none of {listed(missing)}. Certify all "
            "samples together, without --each-group, or name more data."
        )


def _test(
    plans: Sequence[Plan], promise: Promise, samples: Samples, max_new_tokens: int
) -> dict[str, Any]:
    """The data that distinguishes two tests of the same plans.

    The limit is not part of it for a single plan: the plan passes at every limit above one value,
    so tests at several limits are one test. In a sequence of plans, the limit decides which plan
    fails first, so it is part of it.
    """
    limit = {"max_flips": promise.max_flips} if len(plans) > 1 else {}
    return {
        "samples": samples.fingerprint,
        "each_group": promise.each_group,
        "max_new_tokens": max_new_tokens,
        **limit,
    }


def check_unseen(plan: Plan, samples: Samples) -> None:
    """Raises UsageError if one of the samples was used to make the plan.

    A plan that was not made from a profile, such as a published one, has seen no samples.

    Raises:
        UsageError: If a sample was seen, or the plan does not say which samples it was made from.
    """
    refuse_seen({"The plan": plan}, samples, PROOF)


def _after(start: int, total: int, report: Progress) -> Callable[[int], None]:
    what = "With the plan" if start else "Unpruned"
    return lambda done: report(start + done, total, what)
