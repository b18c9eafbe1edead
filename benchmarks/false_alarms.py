"""How often `tpcal verify` raises an alarm: by chance, and where a plan loses more than it states.

The plans of results/embedded run on many samples of the built-in model. Fifty of them, or fifty
of each group, are drawn again and again, as `tpcal verify` draws them, and tested against what a
plan states: its loss on all samples (exact), or its loss and margin on a few of each group, as a
search measures them. A plan that loses more than it states is one that also loses some of the
answers entirely.

Run with `python -m benchmarks.false_alarms`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import tpcal
from tpcal.calibrate.evaluation.loss_tests import loss_tests
from tpcal.calibrate.inputs.models import load
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.calibrate.measure import Measurer
from tpcal.planner.prediction.objective import MOST
from tpcal.planner.search.trials import limited, margin_of
from tpcal.plans.plan_records import Loss, Plan

PLANS = Path(__file__).parents[1] / "results/embedded"
BUDGETS = ("0.1", "0.22", "0.35")
DRAWN = (50, 700)
"""Samples of one verification: by default, and so many that every group is tested."""
STATED = 18
"""Samples of each group that a search states its losses on."""
ALSO_LOST = (0.1, 0.3, 0.5)
"""Shares of the answers that are lost, and of which the plan says nothing."""


def losses(plan: Plan, samples: Samples) -> NDArray[np.float64]:
    """[n] what the plan loses on the built-in model, in nats."""
    found = np.zeros(len(samples))
    for numbers, kl, _ in Measurer(load("embedded"), samples, batch_size=50).losses(plan.cuts):
        found[numbers] = limited(kl)
    return found


class Draws:
    """Verifications of one plan on samples that are drawn from those it was measured on."""

    def __init__(self, lost: NDArray[np.float64], groups: NDArray[np.str_], seed: int) -> None:
        self._lost, self._groups = lost, groups
        self._of = {str(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
        self._random = np.random.default_rng(seed)

    def exact(self) -> Loss:
        """The mean loss of each group, of all its samples."""
        return Loss(measured={g: float(self._lost[at].mean()) for g, at in self._of.items()})

    def stated(self) -> Loss:
        """The mean loss of each group, of `STATED` samples, with its margin."""
        drawn = {g: self._lost[self._random.choice(at, STATED)] for g, at in self._of.items()}
        return Loss(
            measured={group: float(lost.mean()) for group, lost in drawn.items()},
            margin={group: margin_of(lost) for group, lost in drawn.items()},
        )

    def alarm(self, n: int, stated: Loss, also_lost: float = 0.0) -> bool:
        """Whether a verification on n samples raises an alarm, if this share is lost too."""
        # Groups take turns, as in samples of a data set: 50 of 14 groups are 3 or 4 of each.
        order = self._random.permutation(list(self._of))
        turns = [order[i % len(order)] for i in range(n)]
        at = np.array([self._random.choice(self._of[group]) for group in turns])
        lost = np.where(self._random.random(n) < also_lost, MOST, self._lost[at])
        found = loss_tests(lost, self._groups[at], stated.measured, stated.margin)
        return any(test.is_worse for test in found)


@click.command()
@click.option("--samples", "n", default=1400, show_default=True, help="Samples of the model.")
@click.option("--draws", default=300, show_default=True, help="Verifications of each kind.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
def main(n: int, draws: int, seed: int) -> None:
    """Count the alarms of 'tpcal verify' on samples whose losses are known."""
    samples = load_samples(n=n, split="eval", seed=7)
    worse = [f"{share:.0%} also lost" for share in ALSO_LOST]
    table = Table("plan", "samples", "exact", f"of {STATED} a group", *worse)
    for budget in BUDGETS:
        plan = tpcal.load_plan(PLANS / f"plan-{budget}.yaml")
        drawn = Draws(losses(plan, samples), np.array(samples.sample_groups), seed)
        for size in DRAWN:
            shares = [
                np.mean([drawn.alarm(size, drawn.exact()) for _ in range(draws)]),
                np.mean([drawn.alarm(size, drawn.stated()) for _ in range(draws)]),
                *(
                    np.mean([drawn.alarm(size, drawn.stated(), share) for _ in range(draws)])
                    for share in ALSO_LOST
                ),
            ]
            table.add_row(budget, str(size), *(f"{share:.0%}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
