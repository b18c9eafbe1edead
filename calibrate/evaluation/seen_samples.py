"""The rule against testing a plan on samples that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tpcal.calibrate.inputs.sample_digests import unpack
from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.plans.plan_records import Plan


def seen_by(plans: Mapping[str, Plan]) -> frozenset[bytes]:
    """Digests of the samples that calibration or search looked at to make the plans.

    A plan that was not made from a profile, as a published one, has seen no sample.

    Args:
        plans: By the name that an error calls them.

    Raises:
        UsageError: A plan was made from samples and does not say which.
    """
    seen: set[bytes] = set()
    for name, plan in plans.items():
        if "profile" not in plan.provenance:
            continue
        try:
            seen |= unpack(plan.provenance["data"]["seen"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{name} must say which samples it was made from (its key `seen`); got "
                "none. Make it again with tpcal plan."
            ) from None
    return frozenset(seen)


def tested_by(name: str, plan: Plan) -> frozenset[bytes]:
    """Digests of the samples of the plan's certificate; none if it does not say.

    Raises:
        UsageError: What the certificate says are no digests.
    """
    packed = plan.certificate.tested if plan.certificate else None
    try:
        return unpack(packed or "")
    except ValueError:
        raise UsageError(
            f"tested of {name} must hold digests of samples; got something else. Certify the plan "
            "again with tpcal certify."
        ) from None


def count_seen(plans: Mapping[str, Plan], samples: Samples) -> int:
    """Number of samples that any of the plans was made from; raises as `seen_by`."""
    seen = seen_by(plans)
    return sum(identity in seen for identity in samples.identities)


class NewSamplesRule(NamedTuple):
    """How the refusal of seen samples is worded."""

    purpose: str
    seen: str
    way_out: str


EVALUATION = NewSamplesRule(
    "an evaluation",
    "a plan was made from",
    "Take fewer, name others with --split, --data or --seed, or add --allow-seen.",
)
PROOF = NewSamplesRule(
    "a proof",
    "calibration or search looked at",
    "Take fewer, or name others with --split, --data or --seed.",
)


def refuse_seen(plans: Mapping[str, Plan], samples: Samples, rule: NewSamplesRule) -> None:
    """Raises UsageError if any of the samples was looked at to make any of the plans.

    Args:
        plans: By name.
        samples: What the plans are to be tested on.
        rule: `EVALUATION` or `PROOF`.

    Raises:
        UsageError: A sample was seen, or a plan does not say which it has seen.
    """
    n_seen = count_seen(plans, samples)
    if n_seen:
        raise UsageError(
            f"Samples of {rule.purpose} must be new; got {n_seen} of {len(samples)} that "
            f"{rule.seen} ({samples.description}). {rule.way_out}"
        )
