from __future__ import annotations

from dataclasses import replace

import pytest

from tpcal.calibrate.evaluation.compare import Comparison, ComparisonSettings, compare_plans
from tpcal.calibrate.evaluation.generate import Answered, InMemory
from tpcal.calibrate.evaluation.measured_cost import measured
from tpcal.calibrate.evaluation.variants import Pruned, Variant
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.cost import kv_bytes, plan_cost, prefill_flops
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.plan_records import MERGES, Condition, Cut, Plan

HALF = Plan((Cut(1, 0.5, "grid"), Cut(3, 0)))  # 16, 8, 8, 0 tokens: an average of 8
LATE = Plan((Cut(2, 0.0),))  # 16, 16, 0, 0
CONTROLS = ("random", "grid", "downsized")


class Counted(dict[str, InMemory]):
    """Keeps answers by variant, and knows the variants."""

    def of(self, variant: Variant) -> InMemory:
        return self.setdefault(str(variant.key), InMemory())


@pytest.fixture(scope="module")
def kept() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def found(loaded: Loaded, scenes: Samples, kept: Counted) -> Comparison:
    """Two plans of one cost, and a dearer one."""
    plans = {"half": HALF, "late": LATE, "all": Plan((Cut(1, 1.0, "grid"),))}
    return compare_plans(
        *(loaded, scenes, plans),
        settings=ComparisonSettings(controls=CONTROLS, batch_size=4, max_new_tokens=2),
        kept=kept.of,
    )


def test_controls_cost_what_their_plan_was_measured_to_cost(found: Comparison) -> None:
    keeps = {entry.name: entry.cost.layer_average_keep for entry in found.entries}
    assert keeps["half"] == keeps["late"] == 0.5
    assert keeps["random = half"] == keeps["grid = half"] == 0.5
    assert keeps["downsized = half"] == 6 / 16  # 2 x 3; 2 x 4 is no square
    assert [entry.name for entry in found.entries[:4]] == [
        "half",
        *(f"{kind} = half" for kind in CONTROLS),
    ]
    assert [entry.beside for entry in found.entries[:4]] == [None, "half", "half", "half"]


def test_plans_of_one_cost_share_the_answers_of_their_controls(
    found: Comparison, kept: Counted
) -> None:
    # unpruned, three plans, three controls of half and late, three of all
    assert len(kept) == 1 + 3 + 3 + 3
    one, other = found.controls("half"), found.controls("late")
    assert not any(entry.shared for entry in one)
    for a, b in zip(one, other, strict=True):
        assert b.shared
        assert a.evaluation.answers_plan == b.evaluation.answers_plan


def test_every_plan_is_tested_once_against_each_other_way(found: Comparison) -> None:
    pairs = [(test.one, test.other) for test in found.tests]
    assert len(pairs) == len(set(pairs)) == 3 * (1 + 3) + 3
    assert ("half", "unpruned") in pairs
    assert ("half", "grid = half") in pairs
    assert ("half", "late") in pairs
    for test in found.tests:
        assert test.p <= test.p_adjusted <= 1
        assert test.measure == "accuracy"


def test_a_plan_alone_is_tested_against_all_others_and_only_its_tests_correct_each_other(
    loaded: Loaded, scenes: Samples
) -> None:
    plans = {"late": LATE, "half": HALF, "all": Plan()}
    found = compare_plans(
        *(loaded, scenes, plans),
        settings=ComparisonSettings(
            controls=["grid"],
            controls_of=["half"],
            tested=["half"],
            batch_size=6,
            max_new_tokens=2,
        ),
    )
    pairs = [(test.one, test.other) for test in found.tests]
    others = ["unpruned", "grid = half", "late", "all"]
    assert pairs == [("half", other) for other in others]
    assert [entry.name for entry in found.entries] == ["late", "half", "grid = half", "all"]
    smallest = min(found.tests, key=lambda test: test.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 4 * smallest.p))


def test_keeping_all_agrees_with_the_unpruned_model_and_costs_as_much(found: Comparison) -> None:
    (entry,) = (entry for entry in found.plans if entry.name == "all")
    assert entry.cost.layer_average_keep == entry.cost.kv_bytes == 1.0
    assert entry.evaluation.overall.agreement is not None
    assert entry.evaluation.overall.agreement.value == 1.0


def test_without_answers_agreement_is_judged(loaded: Loaded, scenes: Samples) -> None:
    found = compare_plans(
        *(loaded, scenes.unanswered(), {"half": HALF, "late": LATE}),
        settings=ComparisonSettings(controls=["grid"], batch_size=6, max_new_tokens=2),
    )
    assert found.measure == "agreement"
    assert [(t.one, t.other, t.measure) for t in found.tests] == [
        ("half", "grid = half", "agreement"),
        ("late", "grid = late", "agreement"),
        ("half", "late", "agreement"),
    ]
    group, value = found.entries[0].worst() or ("", 2.0)
    assert group in scenes.groups
    assert value <= 1


def test_a_control_that_cannot_be_does_not_stop_the_others(
    loaded: Loaded, scenes: Samples
) -> None:
    found = compare_plans(
        *(loaded, scenes, {"none": Plan((Cut(0, 0.0),))}),
        settings=ComparisonSettings(controls=["grid"], batch_size=6, max_new_tokens=1),
    )
    assert len(found.entries) == 1
    assert "would cost more" in found.impossible["grid = none"]


def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(
    loaded: Loaded, scenes: Samples
) -> None:
    def never(*report: object) -> None:
        raise AssertionError

    with pytest.raises(FitError):
        compare_plans(loaded, scenes, {"deep": Plan((Cut(9, 0.0),))}, progress=never)


def test_samples_that_a_plan_was_made_from_are_refused_unless_they_are_allowed(
    loaded: Loaded, scenes: Samples
) -> None:
    seen = {"seen": pack(scenes.identities[:2])}
    plans = {"own": replace(HALF, provenance={"profile": "sha256:0", "data": seen})}
    with pytest.raises(UsageError, match=f"must be new; got 2 of {len(scenes)}"):
        compare_plans(loaded, scenes, plans)
    compare_plans(
        loaded, scenes, plans, settings=ComparisonSettings(allow_seen=True, max_new_tokens=1)
    )


def test_the_cost_of_a_plan_is_that_of_its_arithmetic(loaded: Loaded) -> None:
    unpruned = [Answered("", 16, 9), Answered("", 16, 9)]
    pruned = [replace(answer, counts=((1, 8), (3, 0))) for answer in unpruned]
    cost = plan_cost(HALF, loaded.shape, 16, 9)
    found = measured(loaded.shape, HALF, pruned, unpruned)
    assert found.layer_average_keep == cost.layer_average_keep
    assert found.prefill_flops == pytest.approx(cost.prefill_flops / cost.unpruned_prefill_flops)
    assert found.kv_bytes == pytest.approx(cost.kv_bytes / cost.unpruned_kv_bytes)


def test_images_that_choose_apart_cost_what_they_compare(loaded: Loaded) -> None:
    plan = Plan((Cut(1, 0.5, "diversity"),), scope="image")
    unpruned = [Answered("", 16, 9)]
    pruned = [replace(unpruned[0], counts=((1, 8),), images=(10, 6))]
    cost = plan_cost(plan, loaded.shape, (10, 6), 9)
    found = measured(loaded.shape, plan, pruned, unpruned)
    assert found.prefill_flops == pytest.approx(cost.prefill_flops / cost.unpruned_prefill_flops)
    together = measured(loaded.shape, plan, [replace(pruned[0], images=())], unpruned)
    assert found.prefill_flops < together.prefill_flops


@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_controls_choose_from_what_their_plan_chooses_from(
    loaded: Loaded, scenes: Samples, scope: str
) -> None:
    images = tuple(sample.images[0] for sample in scenes)
    samples = Samples.of([Sample("two", images[:2], "what ?")])
    kept = Counted()
    plan = Plan((Cut(1, 0.4, "diversity"),), scope=scope)  # 6 of 16 tokens twice, or 13 of 32
    found = compare_plans(
        *(loaded, samples, {"own": plan}),
        settings=ComparisonSettings(controls=("grid", "random"), max_new_tokens=1),
        kept=kept.of,
    )
    assert sum(("'scope': 'image'" in key) == (scope == "image") for key in kept) >= 3
    assert {answers[0].images for answers in kept.values()} == {(), (16, 16)}
    most = found.plans[0].cost.layer_average_keep
    for entry in found.controls("own"):
        assert most - 2 / 32 < entry.cost.layer_average_keep <= most


def test_what_a_conditional_cut_left_is_counted(loaded: Loaded) -> None:
    plan = Plan((Cut(2, 0.0, condition=Condition(0.5)),))
    unpruned = [Answered("", 16, 9), Answered("", 16, 9), Answered("", 0, 9)]
    fired, idle = ((2, 0),), ((2, 16),)
    pruned = [replace(unpruned[0], counts=fired), replace(unpruned[1], counts=idle), unpruned[2]]
    found = measured(loaded.shape, plan, pruned, unpruned)
    assert found.layer_average_keep == pytest.approx((0.5 + 1) / 2)
    tokens = [25, 25, 9, 9], [25] * 4, [9] * 4
    full = 2 * kv_bytes(loaded.shape, tokens[1]) + kv_bytes(loaded.shape, tokens[2])
    assert found.kv_bytes == pytest.approx(sum(kv_bytes(loaded.shape, n) for n in tokens) / full)
    # measuring costs a little, pruning saves more
    flops = [prefill_flops(loaded.shape, n) for n in tokens]
    assert found.prefill_flops > sum(flops) / (2 * flops[1] + flops[2])


def test_measured_conditions_reach_the_cost(loaded: Loaded, scenes: Samples) -> None:
    always, never = (Plan((Cut(2, 0.0, condition=Condition(t)),)) for t in (1.0, 0.0))
    found = compare_plans(
        *(loaded, scenes, {"always": always, "never": never}),
        settings=ComparisonSettings(batch_size=6, max_new_tokens=1),
    )
    assert [entry.cost.layer_average_keep for entry in found.entries] == [0.5, 1.0]
    assert Pruned(always).key != Pruned(never).key


def test_answers_of_plans_that_merge_are_kept_under_names_of_their_own() -> None:
    plan = Plan((Cut(2, 0.5, "grid"),), scope="image")
    merging = [replace(plan, merge=merge) for merge in MERGES]
    assert len({str(Pruned(p).key) for p in (plan, *merging)}) == 3
    assert "merge" not in Pruned(plan).key  # answers that earlier versions kept are found
