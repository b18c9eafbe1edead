"""The planners that tpcal is compared with: their schedules meet the budget and follow the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest
from click.testing import CliRunner

from benchmarks.planner.__main__ import main
from benchmarks.planner.other_planners import Judged, Pieces, all_runs
from benchmarks.planner.rivals import fitprune, greedy, sigmoid, stages
from benchmarks.planner.rivals.schedule import Calibration, Planner, cuts_of, largest, within
from benchmarks.planner.show_other_planners import table
from benchmarks.planner.sizes import QUICK
from tpcal.plans.budget_projection import spent

N_LAYERS, N_TOKENS = 8, 144
NEEDED = np.array([0.0, 4.0, 8.0, 1.0, 0.2, 0.0, 0.0, 0.0])
"""What a token that a layer lacks costs: layers 1 to 3 need the image."""


@dataclass
class Known(Calibration):
    """A calibration whose losses are known: every layer misses the tokens that it does not get."""

    @property
    def n_layers(self) -> int:
        return N_LAYERS

    @property
    def n_tokens(self) -> int:
        return N_TOKENS

    def loss(self, counts: Sequence[int]) -> float:
        self.passes += 1
        return float(NEEDED @ (1 - np.array(counts) / N_TOKENS))


@pytest.mark.parametrize("planner", [sigmoid.plan, stages.plan, greedy.plan])
@pytest.mark.parametrize("target", [0.22, 0.5])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_schedules_meet_the_budget_and_never_rise(
    planner: Planner, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for searched in (sigmoid, stages):
        monkeypatch.setattr(searched, "N_TRIALS", 16)
    given = Known(4, 0, target)
    counts = list(planner(given))
    assert counts[0] == N_TOKENS
    assert counts == sorted(counts, reverse=True)
    assert 0.9 * given.allowed <= sum(counts) <= given.allowed
    assert given.passes > 0
    assert spent(cuts_of(counts, N_TOKENS), N_TOKENS, N_LAYERS) == sum(counts)


def test_greedy_steps_leave_the_layers_alone_that_need_tokens() -> None:
    counts = greedy.plan(Known(4, 0, 0.5))
    even = within(np.full(N_LAYERS, 0.42), Known(4, 0, 0.5))
    assert Known(4, 0, 0.5).loss(counts) < Known(4, 0, 0.5).loss(even)
    assert counts[1] > counts[4]


def test_fitprune_drops_what_neither_the_text_nor_the_image_looks_at() -> None:
    text = np.array([[[0.5, 0.3, 0.1, 0.1], [0.7, 0.3, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]]])
    image = np.array([[[0.4, 0.1, 0.4, 0.1], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]])
    # Of layer 0, the text could do without tokens 2 and 3, and the image without 1 and 3, so that
    # only token 3 leaves. Layer 1 needs neither 2 nor 3. The last layer drops nothing.
    assert fitprune._counts((text, image), 0.75) == (4, 3, 2)
    assert fitprune._counts((text, image), 1.0) == (4, 4, 2)


def test_the_largest_argument_within_the_budget_is_found() -> None:
    given = Known(4, 0, 0.5)
    counts = largest(lambda share: within(np.full(N_LAYERS, share), given), given, 1.0)
    assert sum(counts) <= given.allowed < sum(c + (c < N_TOKENS) for c in counts)
    with pytest.raises(ValueError, match="within 0.1"):
        largest(lambda share: within(np.full(N_LAYERS, share), given), Known(4, 0, 0.1), 1.0)


def test_a_layer_without_tokens_is_a_drop_of_all() -> None:
    cuts = cuts_of((144, 72, 72, 0), N_TOKENS)
    assert [(c.layer, c.keep, c.selector) for c in cuts] == [(1, 0.5, "attention"), (3, 0.0, None)]


def test_pieces_are_the_runs_of_these_budgets_and_seeds() -> None:
    runs = all_runs(replace(QUICK, seeds=(0, 1)))
    some = [run for run in runs if Pieces((0.22,), (1,)).has(run)]
    assert len(some) == len({run.planner for run in runs}) == 5
    assert {(run.target, run.seed) for run in some} == {(0.22, 1)}
    assert all(map(Pieces().has, runs))
    (only,) = (run for run in runs if Pieces((0.35,), (0,), ("GSOP",)).has(run))
    assert only.planner == "GSOP"


def test_the_table_says_which_pieces_are_measured_and_which_are_not() -> None:
    sizes = replace(QUICK, seeds=(0, 1))
    lost = np.full(sizes.judged, 0.25, np.float32)
    found = Judged((), 1200.0, lost, ("no such answer",) * sizes.held_out)
    results = {run: found for run in all_runs(sizes) if Pieces((0.22,), (1,)).has(run)}
    made = table(results, sizes)
    assert made.count("| 0.250 | 0.0% | – | – | 1,200 |") == 5
    assert made.endswith(
        "Measured: 0.22 with seed 1. "
        "Not measured: 0.22 with seed 0; 0.35 with seed 0; 0.35 with seed 1.\n"
    )
    some = {run: found for run in results if run.planner in ("tpcal", "FitPrune")}
    partly = table(some, sizes)
    assert partly.count("| 0.250 | 0.0% | – | – | 1,200 |") == 2
    assert "Measured: 0.22 with seed 1 (without P-Sigmoid, VFlowOpt, GSOP). Not" in partly
    assert "Measured: nothing yet." in table({}, sizes)


def test_losses_that_are_remembered_cost_the_same_passes() -> None:
    asked = []

    def remembered(cuts: object, split: str, n: int, seed: int) -> tuple[object, object]:
        asked.append((cuts, n, seed))
        return np.array([0.5, 1.0, 0.0, 0.5]), np.zeros(4)

    given = Known(4, 7, 0.5, losses=remembered)
    for _ in range(2):
        assert Calibration.loss(given, (144,) * 4 + (0,) * 4) == 0.5
    assert [(n, seed) for _, n, seed in asked] == [(4, 7)]
    assert given.passes == 4 * 0.5


def test_a_budget_that_no_planner_has_is_refused() -> None:
    ended = CliRunner().invoke(main, ["--stage", "planners", "--budget", "0.3"])
    assert ended.exit_code == 2
    assert "--budget must be one of 0.22, 0.35; got 0.3." in ended.output
