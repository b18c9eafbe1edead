"""Whether a plan is slower: judged on given times."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tpcal.calibrate.bench.bench_results import CellResult
from tpcal.calibrate.bench.ratios import Cell, GenerationRun, Repeat, Spread
from tpcal.calibrate.bench.slowdown_tests import (
    ALARM,
    MARGIN,
    check_repeats,
    hidden,
    n_repeats_needed,
    sentences,
    slower,
)
from tpcal.plans.errors import UsageError


def _run(name: str, first: list[float], token: float = 2.0, rate: float = 100.0) -> GenerationRun:
    repeats = tuple(Repeat(ms, 0.8 * ms, token, rate) for ms in first)
    return GenerationRun(name, repeats, peak_bytes=1000, kv_bytes=500)


def _cell(*plans: GenerationRun, unpruned: GenerationRun, batch_size: int = 1) -> Cell:
    return Cell(batch_size, 144, 20, 20, 16, unpruned, plans)


def test_a_plan_that_takes_longer_in_every_repeat_is_slower() -> None:
    unpruned = _run("unpruned", [5.5, 5.6, 5.7] * 5)
    cell = _cell(_run("plan.yaml", [6.0, 6.1, 6.2] * 5), unpruned=unpruned)
    fine = _cell(_run("plan.yaml", [5.0] * 15), unpruned=unpruned, batch_size=4)
    found = slower([cell, fine])
    assert found == [[["ttft"]], [[]]]
    assert sentences([cell, fine], found) == [
        "plan.yaml is slower than unpruned in 1 of 2 cells: batch 1, 144 + 20 tokens: first token "
        "6.10 ms, unpruned 5.60 (+9 %)."
    ]


def test_less_throughput_is_slower_and_more_is_not() -> None:
    unpruned = _run("unpruned", [5.0] * 15)
    less, more = _run("less", [5.0] * 15, rate=90), _run("more", [5.0] * 15, rate=110)
    found = slower([_cell(less, more, unpruned=unpruned)])
    assert found == [[["throughput"], []]]
    (said,) = sentences([_cell(less, more, unpruned=unpruned)], found)
    assert said.endswith("throughput 90.0 tokens/s, unpruned 100 (-10 %).")


def test_what_lies_within_the_margin_is_not_slower() -> None:
    unpruned = _run("unpruned", [100.0] * 15)
    near, beyond = 100 * (1 + 0.9 * MARGIN), 100 * (1 + 1.1 * MARGIN)
    cell = _cell(_run("near", [near] * 15), _run("beyond", [beyond] * 15), unpruned=unpruned)
    assert slower([cell]) == [[[], ["ttft"]]]


def test_drift_that_both_share_is_no_slowdown() -> None:
    drift = np.linspace(1, 3, 15)
    unpruned, plan = _run("unpruned", list(10 * drift)), _run("plan", list(10.1 * drift))
    assert slower([_cell(plan, unpruned=unpruned)]) == [[[]]]


def test_noise_raises_no_more_alarms_than_it_says() -> None:
    """Ratios whose median is the margin itself, with tails as of a machine that others use."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        noise = np.exp(rng.standard_t(2, (6, 15)) / 10) * (1 + MARGIN)
        cells = [
            _cell(_run("plan", list(ratios)), unpruned=_run("unpruned", [1.0] * 15))
            for ratios in noise
        ]
        alarms += any(names for cell in slower(cells) for names in cell)
    assert alarms <= 200 * ALARM + 4  # two and a half standard deviations


def test_the_noise_that_may_hide_a_slowdown_is_told() -> None:
    ratios = [0.9] * 5 + [1.0] * 6 + [1.1] * 3 + [1.3]
    cell = _cell(_run("plan", ratios), unpruned=_run("unpruned", [1.0] * 15))
    most, where = hidden([cell])
    assert most == pytest.approx(0.1)  # 14 of 15 repeats are at most that: p = 0.0005 of 0.01 / 3
    assert where == "first token of plan, batch 1, 144 + 20 tokens"
    assert hidden([_cell(_run("same", [1.0] * 15), unpruned=_run("u", [1.0] * 15))]) == (0.0, "")


@pytest.mark.parametrize(("n_comparisons", "needed"), [(3, 9), (12, 11), (48, 13)])
def test_too_few_repeats_to_judge_by_are_refused(n_comparisons: int, needed: int) -> None:
    assert n_repeats_needed(n_comparisons) == needed
    assert 2.0**-needed <= ALARM / n_comparisons < 2.0 ** (1 - needed)
    check_repeats(needed, n_comparisons // 3, 1)
    with pytest.raises(UsageError, match=f"--repeats must be at least {needed} for"):
        check_repeats(needed - 1, n_comparisons // 3, 1)


def test_figures_are_medians_and_quartiles_and_ratios_those_of_repeats() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread(3.0, 2.0, 4.0).half == 1.0
    unpruned = _run("unpruned", [10.0, 20.0, 40.0])
    cell = _cell(_run("plan", [5.0, 20.0, 30.0]), unpruned=unpruned)
    data = json.loads(json.dumps(CellResult.of(cell, [["ttft"]]).to_json()))
    first, second = data["runs"]
    assert data["n_visual"] == 144
    assert first["ttft_ms"] == {"median": 20.0, "low": 15.0, "high": 30.0}
    assert "ratios" not in first
    assert second["ratios"]["ttft"] == {"median": 0.75, "low": 0.625, "high": 0.875}
    assert second["ratios"]["throughput"]["median"] == 1.0
    assert second["slower"] == ["ttft"]
    assert (second["peak_bytes"], second["kv_bytes"]) == (1000, 500)
