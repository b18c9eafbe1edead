"""Whether a keep that follows the input beats a fixed keep of equal mean cost.

    python -m benchmarks.adaptive_keeps --output adaptive_keeps.json

All cuts of a plan are scaled together, so that each level is the plan itself, cheaper or dearer.
Policies give every sample a level by what its prompt tells (`features.py`). They are fitted
on calibration samples, where their mean cost is at most that of the fixed plan, and judged on
others (`policies.py`). Nothing is executed: what a sample loses at each level is measured,
and a policy is a choice among these losses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import tpcal
from benchmarks.adaptive_keeps.features import ATTENTION, IMAGE, QUESTION, Known, known
from benchmarks.adaptive_keeps.policies import (
    Levels,
    by_feature,
    by_rows,
    cheapest,
    score,
    shuffled,
)
from benchmarks.planner import world
from benchmarks.planner.intervals import Interval, overall_difference, worst_difference
from benchmarks.planner.sizes import ELSEWHERE
from tpcal.planner.prediction.objective import MOST
from tpcal.plans.cost import layer_average_keep
from tpcal.plans.local_paths import EMBEDDED
from tpcal.plans.plan_records import Cut, Plan

Floats = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
PLANS = tuple(str(ROOT / f"results/embedded/plan-{budget}.yaml") for budget in ("0.1", "0.22"))
FACTORS = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)
"""What the keeps of all cuts are multiplied by; no keep exceeds 1."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    calibration: int
    test: int
    shuffles: int
    """How often each feature is shuffled."""
    resamples: int
    factors: tuple[float, ...] = FACTORS


QUICK = Sizes(calibration=14, test=28, shuffles=1, resamples=50, factors=(0.5, 1.0, 2.0))


@dataclass(frozen=True)
class Ladder:
    """A fixed plan and the plans that its keeps make when they are multiplied."""

    plan: Plan
    factors: tuple[float, ...]

    @property
    def fixed(self) -> int:
        """The level of the plan itself."""
        return self.factors.index(1.0)

    @property
    def plans(self) -> list[Plan]:
        """[J] the plan at every level."""
        return [
            replace(self.plan, cuts=tuple(_scaled(cut, factor) for cut in self.plan.cuts))
            for factor in self.factors
        ]

    @property
    def costs(self) -> Floats:
        """[J] layer averages of keep."""
        n, n_layers = world.n_tokens(), world.n_layers()
        return np.array([layer_average_keep(p.schedule(n, n_layers), n) for p in self.plans])


def _scaled(cut: Cut, factor: float) -> Cut:
    return replace(cut, keep=min(1.0, cut.keep * factor))


@dataclass(frozen=True, eq=False)
class Measured:
    """n samples at J levels."""

    nats: Floats  # [n, J]
    changed: Floats  # [n, J] 1 if the answer changes
    names: tuple[str, ...]  # [G] of the groups
    groups: NDArray[np.int64]  # [n]
    known: Known


@dataclass(frozen=True)
class Judged:
    """A policy on the test samples. Gains are the fixed plan's figures minus the policy's."""

    policy: str
    cost: float
    loss: float
    gain: Interval
    worst: float
    worst_gain: Interval
    changed: float
    changed_gain: Interval
    by_chance: tuple[float, ...] = ()
    """Gains of the same rule after the feature was shuffled among the samples."""


def measured(ladder: Ladder, split: str, n: int, seed: int) -> Measured:
    """What every sample loses at every level, and what is known of it."""
    nats, changed = np.empty((2, n, len(ladder.factors)))
    measurer = world.measurer(split, n, seed).of(ladder.plan)
    for level, plan in enumerate(ladder.plans):
        for at, kl, flips in measurer.losses(plan.cuts):
            nats[at, level], changed[at, level] = np.clip(kl, 0.0, MOST), flips > 0
    seen = known(world.model(), world.samples(split, n, seed), ladder.plan.cuts[0])
    return Measured(nats, changed, measurer.groups, measurer.sample_group, seen)


def scores(plan: Plan, seen: Measured, test: Measured) -> Iterator[tuple[str, Floats, Floats]]:
    """Name and values of every feature and regression, [n] of calibration and [m] of test."""
    late = " (too late)" if plan.cuts[0].layer == 0 else ""
    kinds = {"image": IMAGE, "question": QUESTION, f"attention{late}": ATTENTION}
    for kind, names in kinds.items():
        for name in names:
            yield f"{kind}: {name}", seen.known.features[name], test.known.features[name]
    own, others = seen.known, test.known
    in_time = (*IMAGE, *QUESTION, *(() if late else ATTENTION))
    together = {
        "image, all": (own.table(IMAGE), others.table(IMAGE)),
        f"attention{late}, all": (own.table(ATTENTION), others.table(ATTENTION)),
        "question: words": (own.words, others.words),
        "all that is known in time": (
            np.hstack([own.table(in_time), own.words]),
            np.hstack([others.table(in_time), others.words]),
        ),
    }
    for name, (x, asked) in together.items():
        yield name, *score(x, seen.nats.mean(axis=1), asked)


def judge(name: str, shares: Floats, test: Measured, ladder: Ladder, resamples: int) -> Judged:
    """A policy beside the fixed plan on the same samples; ``shares`` [m, J] are its levels."""
    nats, changed = ((shares * x).sum(axis=1) for x in (test.nats, test.changed))
    fixed, fixed_changed = test.nats[:, ladder.fixed], test.changed[:, ladder.fixed]
    return Judged(
        name,
        float((shares @ ladder.costs).mean()),
        float(nats.mean()),
        overall_difference(fixed, nats, test.groups, resamples),
        max(float(nats[test.groups == g].mean()) for g in np.unique(test.groups)),
        worst_difference(-nats[None], -fixed[None], test.groups, resamples),
        float(changed.mean()),
        overall_difference(fixed_changed, changed, test.groups, resamples),
    )


def judged(ladder: Ladder, seen: Measured, test: Measured, sizes: Sizes) -> list[Judged]:
    """Every policy: fixed, by feature, by group, and the best choice in hindsight."""
    costs, n = ladder.costs, len(test.nats)
    levels = Levels(seen.nats, costs, float(costs[ladder.fixed]))

    def of(name: str, shares: Floats) -> Judged:
        return judge(name, shares, test, ladder, sizes.resamples)

    found = [of("fixed", np.tile(np.eye(len(costs))[ladder.fixed], (n, 1)))]
    for name, own, asked in scores(ladder.plan, seen, test):
        chance = []
        for seed in range(sizes.shuffles):
            shares = by_feature(levels, *shuffled((own, asked), seed))
            chance.append(found[0].loss - float((shares * test.nats).sum(axis=1).mean()))
        result = of(name, by_feature(levels, own, asked))
        found.append(replace(result, by_chance=tuple(chance)))
    n_groups = int(seen.groups.max()) + 1
    found.append(of("group (not known)", by_rows(levels, seen.groups, n_groups)[test.groups]))
    hindsight = Levels(test.nats, costs, levels.budget)
    found.append(of("own losses (bound)", cheapest(hindsight, np.ones(n), whole=False)))
    return found


def table(plan: Plan, found: Sequence[Judged]) -> Table:
    """One row for each policy."""
    cuts = ", ".join(f"{cut.keep:.0%} at {cut.layer}" for cut in plan.cuts)
    drawn = Table(title=f"Keeps {cuts}", box=SIMPLE)
    drawn.add_column("level follows", no_wrap=True)
    for head in ("cost", "loss", "gain", "by chance", "worst group", "gain", "changed", "gain"):
        drawn.add_column(head, justify="right")
    for row in found:
        fixed = row.policy == "fixed"
        chance = np.quantile(row.by_chance, 0.95) if row.by_chance else None
        drawn.add_row(
            row.policy,
            f"{row.cost:.4f}",
            f"{row.loss:.4f}",
            "" if fixed else row.gain.show(".4f"),
            "" if chance is None else f"< {chance:.4f}",
            f"{row.worst:.3f}",
            "" if fixed else row.worst_gain.show(),
            f"{row.changed:.1%}",
            "" if fixed else row.changed_gain.show(".1%"),
        )
    return drawn


def _figures(
    ladder: Ladder, seen: Measured, test: Measured, found: Sequence[Judged]
) -> dict[str, Any]:
    of_groups = [test.nats[test.groups == g].mean(0).tolist() for g in range(len(test.names))]
    return {
        "cuts": [[cut.layer, cut.keep, cut.selector] for cut in ladder.plan.cuts],
        "costs": ladder.costs.tolist(),
        "calibration_losses": seen.nats.mean(axis=0).tolist(),
        "test_losses": test.nats.mean(axis=0).tolist(),
        "test_losses_of_groups": dict(zip(test.names, of_groups, strict=True)),
        "policies": [asdict(row) for row in found],
    }


@click.command()
@click.option("--plan", "names", multiple=True, default=PLANS, help="Fixed plan; several may be.")
@click.option("--model", default=EMBEDDED, show_default=True)
@click.option(
    "--calibration", default=1568, show_default=True, help="Samples policies are fitted on."
)
@click.option("--samples", default=1400, show_default=True, help="Samples they are judged on.")
@click.option("--seed", default=0, show_default=True, help="Of all samples.")
@click.option("--quick", is_flag=True, help="Few samples: to try the program.")
@click.option("--output", type=click.Path(path_type=Path), help="Writes all figures as JSON.")
def main(
    names: Sequence[str],
    model: str,
    calibration: int,
    samples: int,
    seed: int,
    quick: bool,
    output: Path | None,
) -> None:
    """Compares keeps that follow the input with a fixed keep of equal mean cost."""
    sizes = Sizes(calibration, samples, shuffles=20, resamples=2000)
    sizes = QUICK if quick else sizes
    world.use(model)
    console, plans = Console(width=180), {}
    for name in names:
        plan = tpcal.load_plan(name, n_layers=world.n_layers(), n_tokens=world.n_tokens())
        ladder = Ladder(plan, sizes.factors)
        seen = measured(ladder, world.CALIBRATION, sizes.calibration, seed + ELSEWHERE)
        test = measured(ladder, world.TEST, sizes.test, seed)
        found = judged(ladder, seen, test, sizes)
        console.print(table(plan, found))
        plans[Path(name).name] = _figures(ladder, seen, test, found)
        if output is not None:  # after every plan, as each takes minutes
            about = {"model": model, "seed": seed, "sizes": asdict(sizes), "plans": plans}
            output.write_text(json.dumps(about, indent=2) + "\n")
    console.print(
        f"{sizes.calibration} calibration and {sizes.test} test samples. Losses are nats per "
        "answer token. By chance: 95 % of the gains of the same rule, its feature shuffled."
    )


if __name__ == "__main__":
    main()
