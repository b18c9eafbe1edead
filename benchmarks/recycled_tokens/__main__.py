"""Whether the answer loses less if kept tokens stand for those that leave.

    python -m benchmarks.recycled_tokens --output recycled.json

`recycling.py` says what is done with kept tokens. Each plan is measured with every setting of a
grid on some samples; the setting that loses least there, of each kind and of all, is judged beside
the plan alone on others. The samples are those of the built-in scenes' evaluation split; the plans
of results/ were made from the calibration split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.recycled_tokens.recycling import ALIKE, EVENLY, NOTHING, Recycling, recycling
from benchmarks.replayed_questions import Losses, ReplayedQuestions
from tpcal.calibrate.evaluation.intervals import paired_difference
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.tape import Tape
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED
from tpcal.plans.plan_names import load_plan
from tpcal.plans.plan_records import Plan

RESULTS = Path(__file__).resolve().parents[2] / "results"
BUDGETS = ("0.10", "0.22", "0.35")
MIXED = (0.0, 0.25, 0.5, 1.0)
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
LEAST = (-1.0, 0.7, 0.9)
KINDS = {
    "states": lambda how: how.mixed > 0 and how.weight == 0,
    "attention": lambda how: how.mixed == 0 and how.weight > 0 and how.divided == ALIKE,
    "attention, evenly": lambda how: how.divided == EVENLY,
    "states and attention": lambda how: how.mixed > 0 and how.weight > 0,
    "any": lambda how: how != NOTHING,
}
"""Kinds of settings, of which the best is judged."""


def grid() -> list[Recycling]:
    """Every setting that is tried, the one that does nothing first."""
    alike = [
        Recycling(mixed, weight, ALIKE, least)
        for mixed, weight, least in product(MIXED, WEIGHTS, LEAST)
        if mixed or weight
    ]
    return [NOTHING, *alike, *(Recycling(weight=w, divided=EVENLY) for w in WEIGHTS if w)]


@dataclass(frozen=True)
class Measured:
    """Measures one plan with settings."""

    questions: ReplayedQuestions
    plan: Plan

    def losses(self, how: Recycling) -> Losses:
        """[n] nats, and [n] whether the answer changed."""
        model = self.questions.loaded.model
        first = min(cut.layer for cut in self.plan.cuts)
        layers = range(first, self.questions.loaded.shape.n_layers)

        def changed(tape: Tape) -> AbstractContextManager[Any]:
            return recycling(tape, model, layers, how)

        return self.questions.replayed(self.plan.cuts, changed)

    def figures(self, how: Recycling) -> tuple[dict[str, float], NDArray[np.float32]]:
        """Loss, worst group and changed answers, and the losses [n]."""
        nats, changed = self.losses(how)
        own = self.questions.groups
        worst = max(float(nats[own == group].mean()) for group in set(own))
        found = {"loss": float(nats.mean()), "worst": worst, "changed": float(changed.mean())}
        return found, nats


def judged(
    choose: ReplayedQuestions, judge: ReplayedQuestions, plan: Plan, tried: list[Recycling]
) -> dict[str, Any]:
    """The figures of the plan alone and of the best setting of every kind."""
    losses = {
        how: float(Measured(choose, plan).losses(how)[0].mean())
        for how in track(tried, "settings")
    }
    plain, nats = Measured(judge, plan).figures(NOTHING)
    found: dict[str, Any] = {"plan": plain}
    for kind, belongs in KINDS.items():
        best = min((how for how in tried if belongs(how)), key=losses.__getitem__)
        own, other = Measured(judge, plan).figures(best)
        difference = paired_difference(nats, other)
        assert difference is not None
        chosen_on = {"chosen_on": losses[best], "plan_there": losses[NOTHING]}
        found[kind] = {**own, **chosen_on, "how": asdict(best), "difference": asdict(difference)}
    return found


@click.command()
@click.option("--model", type=click.Choice(BUILT_IN), default=EMBEDDED, show_default=True)
@click.option("--samples", default=196, show_default=True, help="Choose; twice as many judge.")
@click.option("--seed", default=0, show_default=True, help="Of the samples.")
@click.option(
    "--plan",
    "names",
    multiple=True,
    help="As of 'tpcal eval'.  [default: those of results/, and DivPrune at the same budgets]",
)
@click.option("--quick", is_flag=True, help="Sizes at which figures mean nothing, for tests.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file.")
def main(
    model: str, samples: int, seed: int, names: tuple[str, ...], quick: bool, output: Path | None
) -> None:
    """Measure what it gains that kept tokens stand for those that leave."""
    loaded, console, tried = ModelChoice(model).load(), Console(width=130), grid()
    usual = [str(RESULTS / model / f"plan-{float(budget):g}.yaml") for budget in BUDGETS]
    usual += [f"preset:divprune@{budget}" for budget in BUDGETS]
    names = names or tuple(usual)
    if quick:
        samples, names = 14, names[:1]
        tried = [NOTHING, *grid()[1:3], Recycling(1.0), Recycling(1.0, 1.0), grid()[-1]]
    drawn = load_samples(None, split="eval", n=3 * samples, seed=seed)
    parts = drawn.part(0, samples), drawn.part(samples, 3 * samples)
    choose, judge = (ReplayedQuestions(loaded, part, batch_size=14) for part in parts)
    found: dict[str, Any] = {"model": model, "samples": samples, "seed": seed, "plans": {}}
    for name in names:
        plan = load_plan(name, n_layers=loaded.shape.n_layers)
        shown = Path(name).name
        found["plans"][shown] = rows = judged(choose, judge, plan, tried)
        console.print(_table(shown, rows))
        if output is not None:
            output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    shown = ("loss", "worst", "changed")
    table = Table("", *shown, "difference", "setting", title=title)
    for name, row in rows.items():
        more, how = row.get("difference"), row.get("how", {})
        said = f"{more['value']:.4f} [{more['low']:.4f}, {more['high']:.4f}]" if more else ""
        made = ", ".join(f"{key} {value}" for key, value in how.items())
        table.add_row(name, *(f"{row[key]:.4f}" for key in shown), said, made)
    return table


if __name__ == "__main__":
    main()
