"""Times of layers and of what a plan's own work adds."""

from __future__ import annotations

import itertools

import pytest
import tiny

from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.timing import (
    Clock,
    counts_to_time,
    examples,
    executor_ms,
    measure,
    run,
)
from tpcal.plans.cost import EVERY_PLAN, prefill_ms
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut, Plan

CUTS = (Cut(0, 0.5, "grid"), Cut(1, 0.5, "attention"))


@pytest.fixture
def clock(loaded: Loaded, scenes: Samples) -> Clock:
    """Counts calls instead of seconds."""
    ticks = itertools.count()
    inputs = prompt_inputs(loaded.processor, [scenes[0]], loaded.model)
    return Clock(loaded.model, inputs, now=lambda: next(ticks) / 1000)


def test_what_the_executor_takes_is_found_again(clock: Clock) -> None:
    layer_ms = [(8, 1.0), (16, 1.7), (24, 2.9)]
    own = {EVERY_PLAN: 0.9, "attention": 0.8, "attention per token": 0.0}
    own |= {"grid": 0.3, "grid per token": 0.05}
    prefills = {}
    for plan in examples(CUTS, clock):
        entering = [n + 8 for n in plan.schedule(16, 4)]
        prefills[plan] = prefill_ms(plan, plan.counts(16), entering, layer_ms, own)
    assert executor_ms(layer_ms, prefills, 16, 8, 4) == pytest.approx(own, abs=1e-9)
    held_out = Plan((Cut(1, 0.6, "attention"), Cut(2, 0.3, "grid"), Cut(3, 0.0)))
    found = executor_ms(layer_ms, prefills, 16, 8, 4)
    entering = [n + 8 for n in held_out.schedule(16, 4)]
    layers = 2.9 + (1.7 + 2 / 8 * 1.2) + (1.0 + 5 / 8 * 0.7) + 1.0
    assert prefill_ms(held_out, (10, 5, 0), entering, layer_ms, found) == pytest.approx(
        layers + 2.0 + 5 * 0.05
    )


def test_nothing_measured_is_no_time() -> None:
    assert executor_ms([(8, 1.0)], {}, 16, 8, 4) == {}


def test_examples_cut_where_selectors_can(clock: Clock) -> None:
    plans = examples(CUTS, clock)
    assert plans[0].cuts == ()
    assert len(set(plans)) == len(plans)
    for plan in plans:
        layers = [cut.layer for cut in plan.cuts]
        assert layers == sorted(set(layers))
        assert all(cut.layer > 0 for cut in plan.cuts if cut.selector == "attention")
    assert max(len(plan.cuts) for plan in plans) == 3


def test_every_work_is_timed_once_a_round(clock: Clock) -> None:
    plans = examples(CUTS, clock)[:3]
    decoders, prefills = run(clock, [9, 25, 9], plans)
    assert decoders == pytest.approx({9: 1.0, 25: 1.0})  # one tick from start to end
    assert prefills == pytest.approx(dict.fromkeys(plans, 1.0))
    assert not is_applied(clock.model)


def test_a_model_is_timed_at_every_count_and_with_every_selector(
    loaded: Loaded, clock: Clock
) -> None:
    counts = counts_to_time(16, 9, n_points=3)
    assert counts == [9, 17, 25]
    assert clock.n_layers == 4
    assert clock.n_tokens[0] == 16
    times = measure(Clock(loaded.model, clock.inputs), counts, CUTS)
    assert [n for n, _ in times.layer_ms] == counts
    assert all(ms > 0 for _, ms in times.layer_ms)
    both = {"grid", "grid per token", "attention", "attention per token"}
    assert set(times.executor_ms) == {EVERY_PLAN, *both}
    assert sum(times.executor_ms.values()) > 0


def test_a_decoder_of_which_a_part_takes_cuts_is_timed_there() -> None:
    case = tiny.case("gemma4_shared", "sdpa")
    allowed = find(case.model).cut_layers(case.model)
    assert allowed.stop < len(find(case.model).layers(case.model))
    ticks = itertools.count()
    clock = Clock(case.model, case.rows[0], now=lambda: next(ticks) / 1000)
    cuts = (Cut(0, 0.5, "grid"),)
    for plan in examples(cuts, clock):
        assert all(cut.layer in allowed for cut in plan.cuts)
    assert set(measure(clock, (10, 22), cuts).executor_ms) == {
        EVERY_PLAN,
        "grid",
        "grid per token",
    }
