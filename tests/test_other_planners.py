"""The planners that tpcal is compared with: their schedules meet the budget and follow the loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.__main__ import main
from benchmarks.planner.other_planners import (
    PLANNERS,
    Judged,
    Pieces,
    all_runs,
    of_chosen,
    place,
)
from benchmarks.planner.rivals import (
    attention,
    autoprune,
    fitprune,
    greedy,
    sigmoid,
    stages,
    vispco,
)
from benchmarks.planner.rivals.relaxed import Relaxed
from benchmarks.planner.rivals.schedule import (
    ATTENTION,
    CONTENT,
    Calibration,
    Counts,
    Planner,
    cuts_of,
    largest,
    within,
)
from benchmarks.planner.show_other_planners import table
from benchmarks.planner.sizes import QUICK
from tpcal.planner.prediction.objective import MOST
from tpcal.plans.budget_projection import spent
from tpcal.plans.plan_records import Cut, Cuts

N_LAYERS, N_TOKENS = 8, 144
NEEDED = np.array([0.0, 4.0, 8.0, 1.0, 0.2, 0.0, 0.0, 0.0])
"""What a token that a layer lacks costs: layers 1 to 3 need the image."""


class Small(Calibration):
    """A calibration of a small model that is not run."""

    @property
    def n_layers(self) -> int:
        return N_LAYERS

    @property
    def n_tokens(self) -> int:
        return N_TOKENS


@dataclass
class Known(Small):
    """A calibration whose losses are known: every layer misses the tokens that it does not get."""

    needed: NDArray[np.float64] = field(default_factory=lambda: NEEDED[None])
    """[n, L] what each sample's layers need; a row for all samples."""

    def each(self, counts: Counts) -> NDArray[np.float64]:
        self.passes += 1
        return self.needed @ (1 - np.array(counts) / N_TOKENS)


@pytest.mark.parametrize("planner", [sigmoid.plan, stages.plan, greedy.plan])
@pytest.mark.parametrize(
    ("selector", "target"), [(ATTENTION, 0.22), (ATTENTION, 0.5), (CONTENT, 0.1), (CONTENT, 0.5)]
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_schedules_meet_the_budget_and_never_rise(
    planner: Planner, selector: str, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for searched in (sigmoid, stages):
        monkeypatch.setattr(searched, "N_TRIALS", 16)
    given = Known(4, 0, target, selector)
    counts = list(planner(given))
    assert counts[0] == N_TOKENS or selector == CONTENT
    assert counts == sorted(counts, reverse=True)
    assert 0.9 * given.allowed <= sum(counts) <= given.allowed
    assert given.passes > 0
    cuts = given.cuts(counts)
    assert {cut.selector for cut in cuts if cut.keep} <= {selector}
    assert spent(cuts, N_TOKENS, N_LAYERS) == sum(counts)


def test_a_selector_by_content_spends_on_later_layers_what_layer_0_would_take() -> None:
    by_attention, by_content = Known(4, 0, 0.3), Known(4, 0, 0.3, CONTENT)
    counts = greedy.plan(by_content)
    assert counts[0] < N_TOKENS
    assert by_content.loss(counts) < by_attention.loss(greedy.plan(by_attention)) - 0.5


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
    assert fitprune._counts((text, image), 1, 0.75) == (4, 3, 2)
    assert fitprune._counts((text, image), 1, 1.0) == (4, 4, 2)
    # Tokens that leave before the layer whose attention drops them.
    assert fitprune._counts((text, image), 0, 0.75)[:2] == (3, 2)


def test_text_tokens_that_look_at_different_visual_tokens_tell_them_apart() -> None:
    visual = torch.tensor([True, True, False, False])
    apart = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]])
    alike = torch.tensor([[0, 0], [0, 0], [0.5, 0.5], [0.5, 0.5]])
    heads = torch.stack([torch.cat([seen, torch.zeros(4, 2)], 1) for seen in (apart, alike)])
    assert attention._information(heads[:1], visual) == pytest.approx(1)
    assert attention._information(heads[1:], visual) == pytest.approx(0)
    assert attention._information(heads[[0, 0, 1]], visual) == pytest.approx(2)


def test_autoprunes_curves_are_logistic_and_meet_the_budget() -> None:
    given = Known(4, 0, 0.3)
    steep, flat = (autoprune._counts(given, slope, 14.9) for slope in (0.4, 0.0))
    for counts in (steep, flat):
        assert counts[0] == N_TOKENS
        assert counts[1] <= autoprune.MOST * 0.3 * N_TOKENS
        assert given.allowed - N_LAYERS < sum(counts) <= given.allowed
    assert len(set(flat[1:])) == 1
    first = autoprune._counts(Known(4, 0, 0.3, selector=CONTENT), 0.4, 14.9)[0]
    assert first <= autoprune.MOST * 0.3 * N_TOKENS  # this selector cuts before layer 0 already
    # Layers 3 and 4 of 8 are layers 12 and 16 of the 32 that the curve is given for.
    expected = (1 + np.exp(0.4 * (16 - 14.9))) / (1 + np.exp(0.4 * (12 - 14.9)))
    assert steep[3] / steep[4] == pytest.approx(expected, rel=0.05)


def test_autoprune_gives_samples_that_tell_more_a_flatter_curve_if_they_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autoprune, "information_of", lambda samples: np.arange(len(samples)) % 2.0)
    early, late = np.eye(N_LAYERS)[[1, 7]]
    given = Known(6, 0, 0.3, needed=np.stack([early, late] * 3))
    found = autoprune.plan(given)
    chosen = found.choose(world.samples(world.CALIBRATION, 6, 0))
    assert [min(chosen), max(chosen)] == [chosen[1], chosen[0]]
    assert len(set(chosen[::2])) == len(set(chosen[1::2])) == 1
    measured = np.stack([given.each(counts) for counts in found.schedules])
    own = measured[chosen, np.arange(6)].mean()
    assert own < measured.mean(axis=1).min() - 0.05


def test_values_are_those_of_each_samples_own_plan_and_no_other_plan_is_measured() -> None:
    plans: list[Cuts] = [(Cut(layer, 0.0),) for layer in range(3)]
    asked = []

    def measure(cuts: Cuts) -> list[str]:
        asked.append(cuts[0].layer)
        return [f"{sample} with {cuts[0].layer}" for sample in "ab"]

    assert of_chosen(measure, plans, np.array([2, 0])) == ["a with 2", "b with 0"]
    assert asked == [0, 2]


def test_vispcos_kernel_is_a_step_whose_slope_can_be_learned() -> None:
    high, tenth, half = torch.logit(torch.tensor([0.8, 0.1, 0.5])).tolist()
    step = vispco.kernel(torch.tensor([high, tenth, half, np.log(10)]), N_LAYERS)
    assert step.tolist() == pytest.approx([1, 0.8, 0.8, 0.8, 0.44, 0.08, 0.08, 0.08], abs=1e-3)
    ramp = vispco.kernel(torch.tensor([high, tenth, half, 0.0]), N_LAYERS)
    assert ramp[0] == 1
    assert torch.all(ramp.diff() < 0)


def test_vispcos_gradient_finds_the_layers_that_need_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Linear:
        """The known losses as a function of shares, in ten batches."""

        def __init__(self, samples: object, size: int) -> None:
            self.needed = torch.tensor(NEEDED, dtype=torch.float32)

        def __len__(self) -> int:
            return 10

        def loss(self, batch: int, shares: torch.Tensor) -> torch.Tensor:
            return self.needed @ (1 - shares)

    monkeypatch.setattr(vispco, "Relaxed", Linear)
    given = Known(4, 0, 0.5)
    counts = list(vispco.plan(given))
    assert counts == sorted(counts, reverse=True)
    assert given.allowed - N_LAYERS < sum(counts) <= given.allowed
    # The best schedule has all tokens in layers 0 to 3 and none after them, and loses 0.2.
    assert given.loss(counts) < 0.4
    with pytest.raises(ValueError, match="ranks by attention; got coverage"):
        vispco.plan(Known(4, 0, 0.5, CONTENT))


def test_tokens_that_attention_ignores_are_lost_as_if_they_were_dropped() -> None:
    counts = (144, 60, 60, 40, 20, 20, 5, 5)
    relaxed = Relaxed(world.samples(world.CALIBRATION, 14, 0), 14)
    shares = (torch.tensor(counts) / N_TOKENS).requires_grad_()
    loss = relaxed.loss(0, shares)
    measured = world.measurer(world.CALIBRATION, 14, 0).losses(cuts_of(counts, N_TOKENS))
    nats = np.concatenate([kl for _, kl, _ in measured]).clip(max=MOST)
    assert len(relaxed) == 1
    assert nats.mean() > 0.05
    assert loss.item() == pytest.approx(nats.mean(), rel=0.02)
    (slopes,) = torch.autograd.grad(loss, shares)
    assert slopes[0] == 0
    assert torch.all(slopes[1:] != 0)
    assert torch.all(slopes.isfinite())
    assert relaxed.loss(0, torch.ones(N_LAYERS)).item() == pytest.approx(0, abs=1e-4)


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
    runs = all_runs(replace(QUICK, study_seeds=(0, 1)))
    some = [run for run in runs if Pieces((0.22,), (1,)).has(run)]
    assert len(some) == len({run.planner for run in runs}) == 1 + len(PLANNERS)
    assert {(run.target, run.seed) for run in some} == {(0.22, 1)}
    assert all(map(Pieces().has, runs))
    (only,) = (run for run in runs if Pieces((0.35,), (0,), ("GSOP",)).has(run))
    assert only.planner == "GSOP"


def test_the_table_says_which_pieces_are_measured_and_which_are_not() -> None:
    sizes = replace(QUICK, study_seeds=(0, 1))
    lost = np.full(sizes.judged, 0.25, np.float32)
    found = Judged((), 1200.0, lost, ("no such answer",) * sizes.held_out)
    results = {run: found for run in all_runs(sizes) if Pieces((0.22,), (1,)).has(run)}
    made = table(results, sizes)
    assert made.count("| 0.250 | 0.250 | 0.0% | – | – | – | 1,200 |") == 1 + len(PLANNERS)
    assert made.endswith(
        "Measured: 0.22 with seed 1. "
        "Not measured: 0.22 with seed 0; 0.35 with seed 0; 0.35 with seed 1.\n"
    )
    some = {run: found for run in results if run.planner in ("tpcal", "FitPrune")}
    partly = table(some, sizes)
    assert partly.count("| 0.250 | 0.250 | 0.0% | – | – | – | 1,200 |") == 2
    without = ", ".join(name for name in PLANNERS if name != "FitPrune")
    assert f"Measured: 0.22 with seed 1 (without {without}). Not" in partly
    assert "Measured: nothing yet." in table({}, sizes)


def test_losses_that_are_remembered_cost_the_same_passes() -> None:
    asked = []

    def remembered(cuts: object, split: str, n: int, seed: int) -> tuple[object, object]:
        asked.append((cuts, n, seed))
        return np.array([0.5, 1.0, 0.0, 0.5]), np.zeros(4)

    given = Small(4, 7, 0.5, losses=remembered)
    for _ in range(2):
        assert given.loss((144,) * 4 + (0,) * 4) == 0.5
    assert [(n, seed) for _, n, seed in asked] == [(4, 7)]
    assert given.passes == 4 * 0.5


def test_the_longest_searches_begin_first_with_any_selector() -> None:
    runs = [run for run in all_runs(QUICK) if run.target == 0.22]
    ordered = sorted(runs, key=lambda run: place(run.planner))
    names = [run.planner for run in ordered]
    assert names[:2] == ["GSOP", "GSOP with coverage"]
    assert names[-2:] == ["FitPrune", "FitPrune with coverage"]


def test_a_budget_that_no_planner_has_is_refused() -> None:
    ended = CliRunner().invoke(main, ["--stage", "planners", "--budget", "0.3"])
    assert ended.exit_code == 2
    assert "--budget must be one of 0.22, 0.35; got 0.3." in ended.output
