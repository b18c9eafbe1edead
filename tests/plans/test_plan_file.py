"""What loading a plan file finds out: changed certificates, and plans of newer versions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tpcal.plans.errors import PlanError
from tpcal.plans.plan_card import card
from tpcal.plans.plan_file import (
    certificate_fits,
    dump_plan,
    parse_plan,
    with_certificate_digest,
)
from tpcal.plans.plan_records import Certificate, Cut, ModelIdentity, Plan

PROVEN = Certificate(0.05, 0.95, 700, 20, 0.05, "exact binomial", "all samples", tested="AAAAAAAA")
CERTIFIED = with_certificate_digest(
    Plan(
        cuts=(Cut(2, 0.5, "grid"),),
        model=ModelIdentity(8, name="embedded", fingerprint="sha256:0"),
        certificate=PROVEN,
    )
)


def _changed(old: str, new: str) -> str:
    """The file of a certified plan, changed by hand, without the digest of the whole file."""
    text = dump_plan(CERTIFIED)
    assert text.count(old) == 1
    *lines, last = text.replace(old, new).splitlines()
    assert last.startswith("digest: ")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keep: 0.5", "keep: 0.4"),
        ("n_changed: 20", "n_changed: 2"),
        ("max_flips: 0.05", "max_flips: 0.01"),
        ("'sha256:0'", "'sha256:1'"),
        ("cuts:", "round_to: 16\ncuts:"),
        ("cuts:", "scope: image\ncuts:"),
        ("cuts:", "merge: mean\ncuts:"),
    ],
)
def test_a_certificate_of_a_changed_plan_is_found_and_not_shown(old: str, new: str) -> None:
    with pytest.warns(
        UserWarning, match=r"^plan was changed after it was certified.*tpcal certify"
    ):
        plan = parse_plan(_changed(old, new))
    assert plan.certificate is not None
    assert plan.proven is None
    assert "None. No share of changed answers has been proven." in card(plan, "org/plan")


def test_a_certificate_stays_with_a_plan_that_moves_or_gets_a_name() -> None:
    assert parse_plan(dump_plan(CERTIFIED)) == CERTIFIED
    plan = parse_plan(_changed("name: embedded", "name: ~/models/mine"))
    assert plan.proven == CERTIFIED.certificate
    assert certificate_fits(replace(plan, name="mine", provenance={"seed": 1}))


def test_a_certificate_without_a_digest_is_that_of_an_older_version() -> None:
    plan = replace(CERTIFIED, certificate=PROVEN)
    assert parse_plan(dump_plan(plan)).proven == PROVEN
    assert Plan().proven is None


def test_samples_of_a_certificate_stand_below_what_a_person_reads() -> None:
    *read, tested, _ = dump_plan(CERTIFIED).splitlines()
    assert tested == "tested: AAAAAAAA"
    assert not any("tested" in line for line in read)
    with pytest.raises(PlanError, match="certificate must be a mapping where tested is given"):
        parse_plan("schema: 1\ncertificate: text\ntested: AAAAAAAA")
    with pytest.raises(PlanError, match="tested must be text"):
        parse_plan("schema: 1\ntested: 5")


def test_a_plan_of_a_newer_version_loads_with_a_warning() -> None:
    newer = Plan(provenance={"tpcal": "99.0"})
    with pytest.warns(
        UserWarning, match=r"written by tpcal 99\.0, which is newer.*pip install -U"
    ):
        parse_plan(dump_plan(newer))
    for known in ("0.0.1", "mine", 5):
        parse_plan(dump_plan(Plan(provenance={"tpcal": known})))


def test_what_a_newer_version_has_added_is_explained() -> None:
    text = "schema: 1\nregion: 3\nprovenance: {tpcal: '99.0'}"
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    unknown, newer = caught.value.problems
    assert unknown.startswith("the plan keys must be among")
    assert newer.startswith("The plan was written by tpcal 99.0")
