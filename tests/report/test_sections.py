"""What the sections say: the profile's numbers, and sentences that follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import GROUPS, NASTY, Page, html_of, small_plans, small_profile

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.search.front import MeasuredPoint, Point
from tpcal.plans.cost import plan_cost
from tpcal.plans.errors import FitError
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan
from tpcal.report.cut_labels import labels
from tpcal.report.deviation_section import ALL, deviations
from tpcal.report.drop_all_section import depths
from tpcal.report.front_references import Mark, controls, presets
from tpcal.report.front_section import _names, fronts
from tpcal.report.inputs import Material, gather
from tpcal.report.prediction_section import predictions

PROFILE = small_profile()
FOLDER = Path("nowhere")


def _with(*known: MeasuredPoint, material: Material) -> Material:
    return replace(material, known=known)


def _mean(values: np.ndarray, probe: int, group: int) -> float:
    return float(values[PROFILE.sample_group == group, probe].mean(dtype=np.float64))


def test_the_curves_hold_what_was_measured(page: Page) -> None:
    chart = page.charts["cut-curves"]
    assert [line["x"] for line in chart["data"]] == [list(range(6))] * 4
    assert len(chart["views"]) == 3 * 3 * 4  # measures, keeps with drop-all, selectors with best
    for measure in ("kl", "local", "flips"):
        values = getattr(PROFILE, measure)
        for place, probe in enumerate(PROFILE.probes):
            if probe.selector is None:
                continue
            shown = chart["views"][f"{measure}|{probe.keep:g}|{probe.selector}"]
            for group in range(3):
                expected = _mean(values, place, group)
                assert shown[group][probe.layer] == pytest.approx(expected, rel=1e-3)
            overall = values[:, place].mean(dtype=np.float64)
            assert shown[3][probe.layer] == pytest.approx(overall, rel=1e-3)


def test_the_map_holds_the_same_and_nothing_that_was_not_probed(page: Page) -> None:
    curves, views = page.charts["cut-curves"]["views"], page.charts["cut-map"]["views"]
    for g, group in enumerate((*GROUPS, ALL)):
        for k, keep in enumerate((0.5, 0.1, 0.0)):
            column = [row[k] for row in views[f"kl|{group}|attention"]]
            assert column == curves[f"kl|{keep:g}|attention"][g]
    assert [row[0] for row in views[f"kl|{ALL}|random"]][1:] == [None] * 5


def test_best_is_the_smallest_of_the_selectors(page: Page) -> None:
    views = page.charts["cut-curves"]["views"]
    grid, blind, best = (views[f"kl|0.1|{s}"] for s in ("grid", "random", "best"))
    for group in range(3):
        assert best[group][0] == grid[group][0] < blind[group][0]


def test_the_table_says_what_the_chart_shows(page: Page) -> None:
    chart = page.charts["cut-curves"]
    head, *rows = page.tables["Deviation of one cut, by group and layer"]
    assert head == ["group", *map(str, range(6))]
    for row, line in zip(rows, chart["data"], strict=True):
        assert row[1:] == ["–" if v is None else f"{v:.4g}" for v in line["y"]]
    assert [row[0] for row in rows] == [*GROUPS, ALL]


def test_the_lead_names_the_worst_group_where_it_is_worst(material: Material) -> None:
    # keep 0.1 was probed before 4 layers, as was 0.5; before layer 0 "a & b" loses 2 * 0.9 nats
    lead = deviations(material).lead
    assert (
        "keep 0.1 by the best selector, the worst is before layer 0: “a & b” loses 1.8 nats"
        in lead
    )
    assert "From layer 5 on, no group loses 0.01 nats or more." in lead


def test_the_depth_is_the_profile_s(material: Material, page: Page) -> None:
    # A drop-all before layer l costs need * (1 - l/6)^4; needs are 0.03, 0.45 and 2 nats:
    # 0.03 * (4/6)^4 = 0.0059 at 2; 0.45 * (2/6)^4 = 0.0056 at 4; 2 * (1/6)^4 = 0.0015 at 5.
    head, *rows = page.tables[
        "Nats per answer token lost by dropping all image tokens before a layer"
    ]
    assert head[:3] == ["group", "safe from layer", "0"]
    assert [row[:2] for row in rows] == [["colour", "2"], [NASTY, "4"], ["a & b", "5"]]
    assert rows[2][2] == "2.0000"
    lead = depths(material).lead
    assert lead == "“colour” can lose the image from layer 2 on; “a & b” only from layer 5."


def test_controls_are_what_was_measured_of_single_cuts(material: Material) -> None:
    found = {(mark.name, mark.keep): mark for mark in controls(material)}
    assert set(found) == {(n, k) for n in ("grid", "random") for k in (0.5, 14 / 144)}
    # Losses of a sample count 1 nat at most; keep 0.5 at random: 0.75 * (0.02 … 3.0)
    means = [0.75 * 0.03, 0.75 * 0.45, (0.75 + 1.0) / 2]
    expected = max(means) / 4 + 3 / 4 * sum(means) / 3
    assert found["random", 0.5].loss == pytest.approx(expected, rel=1e-5)
    assert found["random", 0.5].measured
    other = replace(material, same_samples=False)
    assert not any(mark.measured for mark in controls(other))


def test_published_schedules_are_hollow_until_they_are_measured(material: Material) -> None:
    marks = presets(material)
    assert {"vtw", "fastv", "dart-128"} <= {mark.name for mark in marks}
    assert not any(mark.measured for mark in marks)
    vtw = next(mark for mark in marks if mark.name == "vtw")  # drops all half way
    assert vtw.keep == pytest.approx(0.5)
    assert vtw.loss == pytest.approx(material.predictor.score([Cut(3, 0.0)]))
    cuts = fill(material.predictor, load_preset("pyramiddrop", 6).cuts, Budget(0.4))
    known = MeasuredPoint(Point(0.4, 0.2, cuts, True, 0.2), {}, {})
    solid = [mark for mark in presets(_with(known, material=material)) if mark.measured]
    assert solid == [Mark("pyramiddrop", "preset", 0.4, 0.2, True)]


def test_the_front_is_predicted_until_a_search_has_measured(material: Material) -> None:
    assert "the front is predicted" in fronts(material).lead
    known = [
        MeasuredPoint(Point(keep, loss, (Cut(2, keep, "grid"),), True, loss), {}, {})
        for keep, loss in ((0.3, 0.2), (0.4, 0.3), (0.5, 0.1))
    ]
    section = fronts(_with(*known, material=material))
    assert section.lead.startswith("3 plans measured on all samples; 2 of them on the front.")
    lines = {t.name: t for t in section.parts[0].figure.data}
    line, predicted = lines["front, measured"], lines["front, predicted"]
    assert (list(line.x), list(line.y)) == ([0.3, 0.5], [0.2, 0.1])
    assert predicted.line.dash == "dot"
    assert list(predicted.y) == sorted(predicted.y, reverse=True)
    assert len(predicted.x) > 3  # a curve, though few plans were measured


def test_marks_that_coincide_have_one_name() -> None:
    marks = [Mark(name, "preset", 0.1, 0.2, False) for name in ("todre", "divprune")]
    marks.append(Mark("alone", "preset", 0.5, 0.2, False))
    found = _names(marks, [], [], 0.01, 1.0)
    assert found == {
        marks[0]: ("todre, divprune", "middle right"),
        marks[2]: ("alone", "middle right"),
    }
    line = [(0.1, 0.2), (0.5, 0.2)]  # runs through all three, to the right of the first two
    assert _names(marks, [], [line], 0.01, 1.0)[marks[0]][1] == "top center"


def test_a_plan_that_looks_better_on_the_samples_it_was_chosen_by_says_so(
    material: Material,
) -> None:
    cuts = material.plans[0].plan.cuts
    known = MeasuredPoint(Point(0.35, 0.05, cuts, True, 0.05), {}, {})
    assert (
        "On the samples of the search it lost only 0.050:"
        in fronts(_with(known, material=material)).lead
    )


def test_predictions_stand_beside_what_was_measured(material: Material, page: Page) -> None:
    _, *rows = page.tables["Loss by plan and group"]
    given = material.plans[0]
    assert rows == [
        ["plan.yaml", g, f"{given.predicted[g]:.4f}", f"{given.measured[g]:.4f}"] for g in GROUPS
    ]
    gaps = {g: abs(given.predicted[g] - given.measured[g]) for g in GROUPS}
    worst = max(gaps, key=lambda g: gaps[g])
    section = predictions(material)
    assert section is not None
    assert f"“{worst}” of plan.yaml is furthest off" in section.lead


def test_few_measured_plans_say_how_to_get_more(material: Material) -> None:
    known = [
        MeasuredPoint(
            Point(0.1 * i, 0.2 - 0.01 * i, (Cut(2, 0.1 * i, "grid"),), True, 0.2), {}, {}
        )
        for i in range(1, 9)
    ]
    few = predictions(_with(*known[:7], material=material))
    enough = predictions(_with(*known, material=material))
    assert few is not None
    assert enough is not None
    assert "Only 7 plans were measured" in few.notes[0]
    assert enough.notes == ()


def test_nothing_is_said_of_predictions_where_nothing_was_measured(material: Material) -> None:
    assert predictions(replace(material, plans=material.plans[1:])) is None


def test_costs_and_steps_are_those_of_the_typical_prompt(page: Page) -> None:
    plan = small_plans(PROFILE)["plan.yaml"]
    cost = plan_cost(plan, PROFILE.shape, 144, 20, PROFILE.layer_ms)
    head, unpruned, row, _ = page.tables["Cost of one typical prompt"]
    assert (head[0], unpruned[0], unpruned[2]) == ("plan", "unpruned", "1")
    assert row[1:3] == ["72 → 14 → 0", f"{cost.layer_average_keep:.3f}"]
    assert row[4] == f"{100 * cost.prefill_flops / cost.unpruned_prefill_flops:.0f} %"
    assert row[8] == f"{cost.prefill_ms:.3g} ms"
    _, _, steps, _ = page.tables["Image tokens that enter each layer"]
    assert steps[1:] == ["144", "72", "72", "14", "14", "0"]
    drawn = page.charts["schedule"]["data"][0]
    assert drawn["y"] == [144, *(n for n in (144, 72, 72, 14, 14, 0) for _ in range(2))]


def test_cuts_are_named_where_there_is_room(page: Page, material: Material) -> None:
    notes = page.charts["schedule"]["layout"]["annotations"]
    assert {(a["text"], a["x"], a["y"]) for a in notes} == {
        ("attention 72", 0.5, 72),
        ("attention 14", 2.5, 14),
        ("drop all", 4.5, 0),
        ("grid 36", -0.5, 36),
    }
    schedule = [144, 72, 72, 14, 14, 0]
    twice = replace(material.plans[0], name="again", place=1)
    thrice = replace(material.plans[0], name="and again", place=2)
    plans = [material.plans[0], twice, thrice]
    found = labels(plans, {given.name: schedule for given in plans}, 144)
    sides = [(a["x"], a["yanchor"]) for a in found]
    assert sides.count((0.5, "bottom")) == sides.count((0.5, "top")) == 1  # the third has no room


def test_a_slower_prefill_is_called_slower(material: Material) -> None:
    slow = {"every plan": 50.0}
    with_times = replace(PROFILE, executor_ms=slow)
    found = gather(with_times, FOLDER, small_plans(PROFILE), None)
    assert "slower" in Page(html_of(found)).text
    assert "faster" in Page(html_of(material)).text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelIdentity(8), "made for 8 layers; the profile's model has 6"),
        (ModelIdentity(6, "other", fingerprint="sha256:9"), "made for other, whose structure"),
    ],
)
def test_plans_of_other_models_are_refused(model: ModelIdentity, message: str) -> None:
    plan = Plan(cuts=(Cut(1, 0.5, "grid"),), model=model)
    with pytest.raises(FitError, match=message):
        gather(PROFILE, FOLDER, {"plan.yaml": plan}, None)
    with pytest.raises(FitError, match="cuts before layer 7"):
        gather(PROFILE, FOLDER, {"plan.yaml": Plan(cuts=(Cut(7, 0.0),))}, None)


def test_plans_of_other_profiles_come_with_a_note(material: Material) -> None:
    assert material.plans[0].note == ""
    assert "not made from a profile" in material.plans[1].note
    other = replace(material.plans[0].plan, provenance={"profile": "sha256:other"})
    found = gather(PROFILE, FOLDER, {"other.yaml": other}, None)
    assert "other.yaml: made from another profile" in Page(html_of(found)).text


def test_a_profile_alone_makes_a_page(material: Material) -> None:
    page = Page(html_of(replace(material, plans=())))
    assert "No plan was named." in page.text
    assert "schedule" not in page.charts
    assert "front" in page.charts


def test_no_loss_is_outside_its_chart(material: Material) -> None:
    for largest in (0.5, 7.3):
        scaled = replace(PROFILE, kl=PROFILE.kl * (largest / PROFILE.kl.max()))
        charts = Page(html_of(gather(scaled, FOLDER, {}, None))).charts
        for name in ("cut-curves", "drop-all-curves"):
            losses = charts[name]
            top = 10 ** losses["layout"]["yaxis"]["range"][1]
            drawn = [y for line in losses["data"] for y in line["y"] if y is not None]
            assert top >= max(drawn)
            assert top >= 5 * 0.999  # small losses keep the usual axis


def test_many_groups_and_plans_stay_apart(material: Material) -> None:
    names = tuple(f"group {i}" for i in range(14))
    many = replace(
        PROFILE,
        groups=names,
        sample_group=np.arange(14),
        **{
            name: np.repeat(getattr(PROFILE, name)[:1], 14, axis=0) * np.arange(1, 15)[:, None]
            for name in ("kl", "local", "flips", "turns", "text_to_visual", "visual_to_text")
        },
    )
    plans = {f"{i}.yaml": Plan(cuts=(Cut(1, 0.1 * i, "grid"),)) for i in range(1, 9)}
    page = Page(html_of(gather(many, FOLDER, plans, None)))
    named = [t["name"] for t in page.charts["cut-curves"]["data"] if t["showlegend"]]
    assert named == ["group 11", "group 12", "group 13", ALL]  # those that lose most
    lines = [(t["line"]["color"], t["line"]["dash"]) for t in page.charts["schedule"]["data"]]
    assert len(lines) == 8
    assert len(set(lines[:6])) == 6
    assert "The table has 5 more plans." in page.text
