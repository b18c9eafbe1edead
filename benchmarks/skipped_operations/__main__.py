"""Whether visual tokens that skip operations lose less, at equal FLOPs, than tokens that leave.

    python -m benchmarks.skipped_operations --output skips.json

Three questions are answered (`operations.py` says what an operation is):

1. What does it lose if all visual tokens skip one kind of operation in one block of layers?
2. What does it lose to skip one after another, in greedy order, with the tokens of a plan or with
   all tokens?
3. Does a plan with more tokens and skips, at the FLOPs of a plan without skips, lose less?

Samples of the built-in scenes' evaluation split choose, and others judge; the plans of results/
were made from the calibration split. Costs are those of one prompt, which the plans name.

Source:
    Liu et al. 2025, Greedily Sorted Operation Pruning (arXiv 2507.02909v1). The order here divides
    the loss by the FLOPs saved. As there, a step measures again only what was best in earlier
    steps, and the first step ranks everything on fewer samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.skipped_operations.operations import (
    FFN,
    NOTHING,
    QUERIES,
    READ,
    Prompt,
    Questions,
    Skips,
)
from tpcal.calibrate.evaluation.intervals import paired_difference
from tpcal.calibrate.evaluation.loss_tests import TOLERANCE
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED
from tpcal.plans.plan_names import load_plan
from tpcal.plans.plan_records import Cuts

RESULTS = Path(__file__).resolve().parents[2] / "results"
KINDS = {
    "ffn": (FFN,),
    "queries": (QUERIES,),
    "ffn and queries": (FFN, QUERIES),
    "read": (READ,),
    "attention": (QUERIES, READ),
    "layer": (FFN, QUERIES, READ),
}
"""What a move skips; the last is a drop of all tokens that come back."""
SHORTLIST = 4
"""Moves that are measured again in each step."""
SCREEN = 0.15
"""Share of the samples on which the first step ranks all moves."""
LEAST, LOST = 0.03, 0.3
"""An order ends at this share of FLOPs, or at this loss in nats."""
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Move:
    """One kind of skip in some layers."""

    kind: str
    first: int
    stop: int

    def __str__(self) -> str:
        last = self.stop - 1
        return f"{self.kind} {self.first}" + (f"-{last}" if last > self.first else "")

    @property
    def skips(self) -> Skips:
        """The operations."""
        return frozenset(
            (at, op) for at in range(self.first, self.stop) for op in KINDS[self.kind]
        )


def moves(n_layers: int, block: int) -> list[Move]:
    """Every kind in every block of layers, and in all layers from a block on.

    All operations in all layers from one on are left out: a plan can drop all tokens there.
    """
    starts = range(0, n_layers, block)
    single = [Move(kind, at, min(at + block, n_layers)) for kind in KINDS for at in starts]
    return single + [Move(kind, at, n_layers) for kind in list(KINDS)[:-1] for at in starts[:-1]]


@dataclass(frozen=True)
class Setting:
    """Cuts with skips."""

    cuts: Cuts
    skips: Skips = NOTHING
    moves: tuple[str, ...] = ()
    """What the skips are made of, in order."""
    base: str = UNPRUNED
    """The plan whose cuts these are, perhaps with other keeps."""


@dataclass(frozen=True)
class Bench:
    """The prompt whose cost counts, and the samples that choose and judge."""

    prompt: Prompt
    choose: Questions
    judge: Questions

    def share(self, setting: Setting) -> float:
        """FLOPs that visual tokens cause, as a share of those in the unpruned model."""
        return self.prompt.share(setting.cuts, setting.skips)

    def judged(self, setting: Setting) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """The figures of a setting on the samples that judge, and their losses [n] in nats."""
        nats, changed = self.judge.losses(setting.cuts, setting.skips)
        own = self.judge.groups
        figures = {
            "base": setting.base,
            "moves": setting.moves,
            "tokens": self.prompt.schedule(setting.cuts),
            "flops": self.share(setting),
            "kv": self.prompt.kv_share(setting.cuts, setting.skips),
            "loss": float(nats.mean()),
            "worst": max(float(nats[own == group].mean()) for group in set(own)),
            "changed": float(changed.mean()),
        }
        return figures, nats

    def refilled(self, setting: Setting, flops: float) -> Setting:
        """The setting with as many more tokens as these FLOPs allow."""
        cuts = self.prompt.refilled(setting.cuts, setting.skips, flops)
        return Setting(cuts, setting.skips, setting.moves, setting.base)


def greedy(bench: Bench, start: Setting, tried: list[Move]) -> list[Setting]:
    """The start and what follows by adding the move of least loss per FLOP, again and again."""
    found, now = [start], bench.choose.mean(start.cuts, start.skips)
    rates = _rates(bench, start, tried, SCREEN)
    while bench.share(found[-1]) > LEAST and now < LOST:
        last = found[-1]
        rates = {move: rate for move, rate in rates.items() if not move.skips <= last.skips}
        shortlist = sorted(rates, key=rates.__getitem__)[:SHORTLIST]
        rates |= _rates(bench, last, shortlist, 1.0)
        best = min(shortlist, key=rates.__getitem__, default=None)
        if best is None or rates[best] == np.inf:
            break
        skips, names = last.skips | best.skips, (*last.moves, str(best))
        found.append(Setting(last.cuts, skips, names, last.base))
        now = bench.choose.mean(last.cuts, skips)
    return found


def _rates(bench: Bench, last: Setting, tried: list[Move], samples: float) -> dict[Move, float]:
    """What each move loses per share of FLOPs that it saves; infinite if it saves none."""
    rates, share = {}, bench.share(last)
    now = bench.choose.mean(last.cuts, last.skips, samples)
    for move in tried:
        skips = last.skips | move.skips
        saved = share - bench.prompt.share(last.cuts, skips)
        if saved > 0:
            rates[move] = (bench.choose.mean(last.cuts, skips, samples) - now) / saved
        else:
            rates[move] = np.inf
    return rates


def at_equal_flops(bench: Bench, plan: Setting, orders: Mapping[str, list[Setting]]) -> Setting:
    """The setting with skips that loses least, on the samples that choose, at a plan's FLOPs.

    Every step of the plan's own order spends what it saves on more tokens. Of the orders of the
    unpruned model and of plans with more FLOPs, the first steps that cost no more are tried.
    """
    allowed, share = bench.prompt.flops(plan.cuts), bench.share(plan)
    within = [[s for s in order if bench.share(s) <= share] for order in orders.values()]
    tried = [*orders[plan.base][1:], *(order[0] for order in within if order and order[0].skips)]
    filled = [bench.refilled(setting, allowed) for setting in tried]
    return min(filled, key=lambda setting: bench.choose.mean(setting.cuts, setting.skips))


def cheapest(bench: Bench, order: list[Setting]) -> Setting:
    """The last step of a plan's order that loses at most `TOLERANCE` more, where choosing."""
    losses = [bench.choose.mean(setting.cuts, setting.skips) for setting in order]
    return [s for s, loss in zip(order, losses, strict=True) if loss <= losses[0] + TOLERANCE][-1]


def compared(bench: Bench, plan: Setting, others: Mapping[str, Setting]) -> dict[str, Any]:
    """The figures of a plan and of settings beside it, with the difference of their losses."""
    figures, nats = bench.judged(plan)
    found = {"plan": figures}
    for name, setting in others.items():
        own, losses = bench.judged(setting)
        difference = paired_difference(nats, losses)
        assert difference is not None
        found[name] = {**own, "difference": asdict(difference)}
    return found


@click.command()
@click.option("--model", type=click.Choice(BUILT_IN), default=EMBEDDED, show_default=True)
@click.option("--samples", default=196, show_default=True, help="Choose; twice as many judge.")
@click.option("--seed", default=0, show_default=True, help="Of the samples.")
@click.option("--block", default=2, show_default=True, help="Layers that skip together.")
@click.option("--budget", "budgets", multiple=True, help="Of the plans.  [default: all]")
@click.option("--pruned-only", is_flag=True, help="Leave out skips with all tokens.")
@click.option("--quick", is_flag=True, help="Sizes at which figures mean nothing, for tests.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file.")
def main(
    model: str,
    samples: int,
    seed: int,
    block: int,
    budgets: tuple[str, ...],
    pruned_only: bool,
    quick: bool,
    output: Path | None,
) -> None:
    """Measure what it loses that visual tokens skip operations, beside dropping tokens."""
    if quick:
        samples, block, budgets = 2, 8, budgets or ("0.1",)
    loaded, console = ModelChoice(model).load(), Console(width=150)
    drawn = load_samples(None, split="eval", n=3 * samples, seed=seed)
    chosen = [RESULTS / model / f"plan-{budget}.yaml" for budget in budgets]
    files = sorted(chosen or (RESULTS / model).glob("plan-*.yaml"), reverse=True)
    plans = [load_plan(file) for file in files]
    cost = plans[0].cost
    assert cost is not None
    parts = drawn.part(0, samples), drawn.part(samples, 3 * samples)
    questions = [Questions(loaded, part, batch_size=14) for part in parts]
    bench = Bench(Prompt(loaded.shape, cost.n_tokens, cost.n_text), *questions)
    tried = moves(loaded.shape.n_layers, block)
    starts = [] if pruned_only else [Setting(())]
    starts += [Setting(plan.cuts, base=str(plan.budget and plan.budget.target)) for plan in plans]
    found: dict[str, Any] = {"model": model, "samples": samples, "seed": seed, "block": block}
    if not pruned_only:
        alone = [move for move in tried if move.stop - move.first <= block]
        found["single"] = {str(move): bench.choose.mean((), move.skips) for move in alone}
        console.print(_single_table(alone, found["single"]))
    orders: dict[str, list[Setting]] = {}
    found["plans"] = {}
    for start in starts:  # from the dearest to the cheapest, which may begin with the others
        order = orders[start.base] = greedy(bench, start, tried)
        if start.base == UNPRUNED:
            found["alone"] = [bench.judged(setting)[0] for setting in order]
            rows = {(own["moves"] or ("no skip",))[-1]: own for own in found["alone"]}
            console.print(_table("Skips one after another, with all tokens", rows))
            continue
        others = {
            "equal FLOPs, more tokens": at_equal_flops(bench, start, orders),
            "equal tokens, fewer FLOPs": cheapest(bench, order),
        }
        found["plans"][start.base] = rows = compared(bench, start, others)
        console.print(_table(f"Beside the plan: {start.base}", rows))
        if output is not None:
            output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _single_table(alone: list[Move], losses: Mapping[str, float]) -> Table:
    table = Table("from layer", *KINDS, title="Loss in nats of one skip")
    for first in sorted({move.first for move in alone}):
        own = {move.kind: losses[str(move)] for move in alone if move.first == first}
        table.add_row(str(first), *(f"{own[kind]:.4f}" for kind in KINDS))
    return table


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    shown = ("flops", "kv", "loss", "worst", "changed")
    table = Table("", *shown, "difference", "moves", title=title)
    for name, row in rows.items():
        more = row.get("difference")
        said = f"{more['value']:.4f} [{more['low']:.4f}, {more['high']:.4f}]" if more else ""
        made = f"{row['base']}: {', '.join(row['moves'])}" if more else ""
        table.add_row(name, *(f"{row[key]:.4f}" for key in shown), said, made)
    return table


if __name__ == "__main__":
    main()
