from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import Samples
from tpcal.planner.certificates.binomial import Promise
from tpcal.planner.certificates.certify import check_groups, check_unseen
from tpcal.plans.errors import GuardrailError, UsageError
from tpcal.plans.plan_records import Loss, Plan


def _samples(n: int, start: int = 0) -> Samples:
    image = Image.new("RGB", (2, 2))
    rows = [Sample(str(i), (image,), f"{start + i} ?", group="ab"[i % 2]) for i in range(n)]
    return Samples.of(rows)


def _plan(samples: Samples) -> Plan:
    seen = pack(samples.identities)
    return Plan(provenance={"profile": "sha256:0", "data": {"seen": seen}})


def test_samples_that_were_seen_are_counted_and_refused() -> None:
    plan = _plan(_samples(10))
    check_unseen(plan, _samples(10, start=10))
    with pytest.raises(UsageError, match=r"got 3 of 8 that .*\(8 samples given\)"):
        check_unseen(plan, _samples(8, start=7))


def test_a_plan_has_to_say_what_it_saw_unless_it_was_made_from_nothing() -> None:
    check_unseen(Plan(), _samples(2))
    for data in ({}, {"seen": "AAAA"}, {"seen": 5}, "text"):
        plan = replace(_plan(_samples(2)), provenance={"profile": "sha256:0", "data": data})
        with pytest.raises(UsageError, match="Make it again with tpcal plan"):
            check_unseen(plan, _samples(2))


def test_too_few_samples_are_refused_before_any_run_and_told_how_many_it_takes() -> None:
    Promise(0.05, 0.95).check_samples(_samples(59))
    with pytest.raises(GuardrailError, match=r"must be at least 59 .* got 58\. Take more"):
        Promise(0.05, 0.95).check_samples(_samples(58))
    each = Promise(0.05, 0.95, each_group=True)
    each.check_samples(_samples(118))
    with pytest.raises(GuardrailError, match=r"in b must be at least 59 .* got 58"):
        each.check_samples(_samples(117))


def test_a_proof_of_each_group_needs_samples_of_all_that_the_plan_states() -> None:
    check_groups(Plan(loss=Loss(measured={"a": 0.1, "b": 0.2})), _samples(4))
    check_groups(Plan(loss=Loss(measured={"mine": 0.1})), _samples(4))  # of other data
    with pytest.raises(UsageError, match="must have new samples; got none of c. Certify all"):
        check_groups(Plan(loss=Loss(measured={"a": 0.1, "c": 0.2})), _samples(4))


@pytest.mark.parametrize(("max_flips", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.05, 1.0)])
def test_a_promise_of_nothing_or_everything_is_refused(
    max_flips: float, confidence: float
) -> None:
    with pytest.raises(UsageError, match="must be above 0 and below 1"):
        Promise(max_flips, confidence).check_n(100, "Samples")
