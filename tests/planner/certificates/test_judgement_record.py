"""Plans that were judged on the same samples, remembered and allowed for."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.planner.certificates.binomial import level
from tpcal.planner.certificates.judgement_record import FILE, JudgementRecord, name_of
from tpcal.plans.errors import GuardrailError
from tpcal.plans.plan_records import MERGES, Cut, Plan

N_RESAMPLES = 20_000


def _samples(start: int, end: int) -> Samples:
    image = Image.new("RGB", (2, 2))
    return Samples.of([Sample(str(i), (image,), f"{i} ?", group="a") for i in range(start, end)])


def _test(samples: Samples, **more: object) -> dict[str, object]:
    return {"samples": samples.fingerprint, "each_group": False, "max_new_tokens": 16, **more}


@pytest.fixture
def judged(tmp_path: Path) -> JudgementRecord:
    return JudgementRecord([tmp_path / "own", tmp_path / "out"])


def test_the_levels_of_a_row_sum_to_what_is_promised() -> None:
    levels = [level(0.95, place) for place in range(1, 100_001)]
    assert levels[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert sum(levels) <= 0.05
    assert sum(levels) == pytest.approx(0.05, rel=1e-4)
    assert level(0.95, None) == pytest.approx(0.05)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n_plans", [1, 5, 10, 20])
def test_whoever_ships_the_first_plan_that_passes_breaks_few_promises(
    n_plans: int, alike: float
) -> None:
    """All plans change a hair too much, the same answers to a part of the samples ``alike``."""
    rng = np.random.default_rng(0)
    n, limit, shared = 700, 0.05, int(700 * alike)
    changed = rng.binomial(shared, 0.0501, (N_RESAMPLES, 1))
    changed = changed + rng.binomial(n - shared, 0.0501, (N_RESAMPLES, n_plans))
    p = binom.cdf(changed, n, limit)
    levels = [level(0.95, place) for place in range(1, n_plans + 1)]
    false = (p <= levels).any(axis=1).mean()
    assert 0.01 < false <= 0.05  # the slack of 20,000 resamples, 0.005, is not needed
    if n_plans > 1 and alike < 0.9:
        assert (p <= 0.05).any(axis=1).mean() > 0.14  # as without a memory


def test_whoever_looks_before_choosing_a_plan_to_prove_breaks_few_promises() -> None:
    """Twenty plans are compared by `tpcal eval`; the one that changes least is certified."""
    rng = np.random.default_rng(1)
    changed = rng.binomial(700, 0.0501, (N_RESAMPLES, 20))
    best = changed.argmin(axis=1)
    p = binom.cdf(changed[np.arange(N_RESAMPLES), best], 700, 0.05)
    assert (p <= np.array([level(0.95, int(at) + 1) for at in best])).mean() <= 0.05
    assert (p <= 0.05).mean() > 0.5


def test_every_plan_takes_the_next_place_and_keeps_it(judged: JudgementRecord) -> None:
    samples = _samples(0, 20)
    test = _test(samples)
    assert judged.place("a", samples, test) == 1
    assert judged.n_plans(samples) == 0  # asking remembers nothing
    assert [judged.take(plan, samples, test) for plan in "abcab"] == [1, 2, 3, 1, 2]
    assert judged.place("d", samples, test) == 4
    assert judged.n_plans(samples) == 3


def test_samples_that_overlap_count_and_others_do_not(judged: JudgementRecord) -> None:
    first, more, other = _samples(0, 20), _samples(19, 40), _samples(20, 30)
    assert judged.take("a", first, _test(first)) == 1
    assert judged.take("b", more, _test(more)) == 2
    assert judged.take("c", _samples(50, 60), _test(other)) == 1
    assert judged.take("d", other, _test(other)) == 2  # beside b alone
    assert judged.take("a", more, _test(more)) == 4  # a again, on further samples


def test_another_promise_of_the_same_plan_is_another_test(judged: JudgementRecord) -> None:
    samples = _samples(0, 20)
    assert judged.take("a", samples, _test(samples)) == 1
    assert judged.take("a", samples, _test(samples, each_group=True)) == 2
    assert judged.take("a", samples, _test(samples, max_new_tokens=32)) == 3


def test_a_look_takes_a_place_that_one_test_of_the_plan_may_use(judged: JudgementRecord) -> None:
    samples, part = _samples(0, 20), _samples(5, 15)
    assert [judged.take(plan, samples) for plan in "abab"] == [1, 2, 1, 2]
    assert judged.take("b", part, _test(part)) == 2
    assert judged.take("b", samples, _test(samples)) == 3
    assert judged.take("a", samples, _test(samples)) == 1
    assert judged.take("c", samples, _test(samples)) == 4
    assert judged.take("c", samples) == 4
    assert judged.n_plans(samples) == 4


def test_a_look_at_a_few_samples_costs_the_plan_that_is_proven_nothing(
    judged: JudgementRecord,
) -> None:
    few, all_of_them = _samples(0, 5), _samples(0, 20)
    assert judged.take("a", few) == 1
    assert judged.take("a", all_of_them) == 1
    assert judged.take("a", all_of_them, _test(all_of_them)) == 1
    assert judged.take("b", few) == 2
    assert judged.take("c", all_of_them) == 3
    assert judged.take("b", all_of_them, _test(all_of_them)) == 3  # behind a and c
    assert judged.take("b", all_of_them, _test(all_of_them, each_group=True)) == 4
    assert judged.n_plans(all_of_them) == 4


@pytest.mark.parametrize("lost", ["own", "out"])
def test_one_of_two_files_is_enough(judged: JudgementRecord, tmp_path: Path, lost: str) -> None:
    samples = _samples(0, 20)
    judged.take("a", samples, _test(samples))
    (tmp_path / lost / FILE).unlink()
    assert judged.take("b", samples, _test(samples)) == 2
    elsewhere = JudgementRecord([tmp_path / "own", tmp_path / "new"])
    assert elsewhere.take("c", samples, _test(samples)) == 3 - (lost == "own")


def test_half_a_line_spoils_no_other(judged: JudgementRecord, tmp_path: Path) -> None:
    samples = _samples(0, 20)
    judged.take("a", samples, _test(samples))
    for folder in ("own", "out"):
        with (tmp_path / folder / FILE).open("a") as file:
            file.write('{"plan": "half a li')
    assert judged.take("b", samples, _test(samples)) == 2
    assert judged.take("c", samples, _test(samples)) == 3


def test_processes_at_the_same_moment_take_different_places(tmp_path: Path) -> None:
    samples = _samples(0, 5)

    def take(plan: int) -> int:
        return JudgementRecord([tmp_path]).take(str(plan), samples, _test(samples))

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(take, range(16))) == list(range(1, 17))


def test_where_nothing_can_be_remembered_a_warning_says_what_that_means(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    judged = JudgementRecord([tmp_path / "file" / "a", tmp_path / "file" / "b"])
    samples = _samples(0, 5)
    with pytest.warns(UserWarning, match="promises of further plans on them are too weak"):
        assert judged.take("a", samples, _test(samples)) == 1


def test_the_memory_holds_digests_alone(judged: JudgementRecord, tmp_path: Path) -> None:
    samples = _samples(0, 3)
    plan = Plan(cuts=(Cut(1, 0.5, "grid"),), name="mine")
    judged.take(name_of([plan], "weights"), samples, _test(samples))
    kept = json.loads((tmp_path / "own" / FILE).read_text())
    assert set(kept) == {"made_by", "slot", "plan", "place", "samples", "test"}
    assert "mine" not in str(kept)
    assert "?" not in str(kept)


def test_a_plan_is_what_it_does_to_which_weights() -> None:
    plan = Plan(cuts=(Cut(1, 0.5, "grid"),), name="a", provenance={"time": "now"})
    same = replace(plan, name="b", provenance={})
    other = replace(plan, cuts=(Cut(1, 0.25, "grid"),))
    assert name_of([plan], "w") == name_of([same], "w")
    assert len({name_of(p, w) for p in ([plan], [other], [plan, other]) for w in "vw"}) == 6


def test_plans_that_merge_are_other_plans() -> None:
    plan = Plan(cuts=(Cut(1, 0.5, "grid"),))
    merging = [replace(plan, merge=merge) for merge in MERGES]
    assert len({name_of([p], "w") for p in (plan, *merging)}) == 3
    made_before = "sha256:582f6a974ddaeca01bbe6ffea79cdc81e034ac1bd50a14b012616e43610c3d2e"
    assert name_of([plan], "w") == made_before  # earlier versions remembered plans under it


def test_what_is_refused_says_how_strict_it_was() -> None:
    from tpcal.planner.certificates.binomial import Changed, Promise, certificate

    with pytest.raises(GuardrailError, match=r"judgement 3 on these samples, .* level of 0\.0034"):
        certificate({"a": Changed(3, 150)}, 0.05, 0.95, place=3)
    with pytest.raises(GuardrailError, match=r"at least 69 .* got 68\. Take more .* less\.$"):
        Promise(0.05, 0.95, place=1).check_n(68, "Samples")
    with pytest.raises(GuardrailError, match=r"at least 96 .* judgement 2 .* would be 0\.03\.$"):
        Promise(0.05, 0.95, place=2).check_n(95, "Samples")
    proven = certificate({"a": Changed(0, 96)}, 0.05, 0.95, place=2)
    assert (proven.bound, proven.place) == (0.05, 2)
