"""Errors of predicted milliseconds, on pruned prefills of held-out plans.

The times of layers and of the executor are measured as `tpcal calibrate` does, in one run with
held-out plans that take turns with them. So all times are from the same minutes, and the errors
are those of the prediction and not of a machine that others use, too. Held-out plans cut at random
layers to random keeps, by any of the selectors; few of their token counts were timed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from machine import DTYPES, hardware, run_options, timer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tpcal.calibrate import timing
from tpcal.calibrate.bench.geometry import GEOMETRIES, build, prompt
from tpcal.calibrate.timing import Clock
from tpcal.plans.cost import layers_ms, prefill_ms
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors import min_layer

MISSED = 6  # exit code
WITHIN = 0.10
EMBEDDED = "embedded"
SELECTORS = ("grid", "attention", "diversity", "dart")


@dataclass(frozen=True)
class Held:
    """One held-out plan."""

    cuts: str
    layer_average_keep: float
    measured_ms: float
    predicted_ms: float
    layers_ms: float
    """The predicted time of the layers, without the executor's."""

    @property
    def error(self) -> float:
        """Relative error of the prediction; positive if it is too long."""
        return self.predicted_ms / self.measured_ms - 1


def held_out(n_plans: int, n_layers: int, selectors: Sequence[str], seed: int) -> list[Plan]:
    """Random plans of one to three cuts, some followed by a drop-all."""
    rng = np.random.default_rng(seed)
    plans = []
    for _ in range(n_plans):
        n_cuts = int(rng.integers(1, 4))
        layers = sorted(rng.choice(n_layers - 1, n_cuts, replace=False).tolist())
        keeps = sorted(rng.uniform(0.03, 0.9, n_cuts).tolist(), reverse=True)
        cuts = []
        for layer, keep in zip(layers, keeps, strict=True):
            possible = [s for s in selectors if min_layer(s) <= layer]
            cuts.append(Cut(layer, round(keep, 3), str(rng.choice(possible))))
        drop = [Cut(n_layers - 1, 0.0)] if rng.random() < 0.3 else []
        plans.append(Plan((*cuts, *drop)))
    return plans


def run(clock: Clock, selectors: Sequence[str], plans: Sequence[Plan]) -> list[Held]:
    """Predicted and measured milliseconds of the held-out plans."""
    # Everything is timed in one run. The executor's terms are then fitted to the example plans
    # alone, so that the held-out plans test the prediction.
    n_tokens, n_text = clock.n_tokens
    cuts = [Cut(min_layer(name), 0.5, name) for name in selectors]
    learned = timing.examples(cuts, clock)
    counts = timing.counts_to_time(n_tokens, n_text)
    decoders, prefills = timing.run(clock, counts, [*learned, *plans])
    layers = [(n, ms / clock.n_layers) for n, ms in decoders.items()]
    known = {plan: prefills[plan] for plan in learned}
    own = timing.executor_ms(layers, known, n_tokens, n_text, clock.n_layers)
    found = []
    for plan in plans:
        schedule = plan.schedule(n_tokens, clock.n_layers)
        entering = [n + n_text for n in schedule]
        found.append(
            Held(
                " ".join(f"{c.layer}:{c.keep:g} {c.selector or 'drop'}" for c in plan.cuts),
                sum(schedule) / (n_tokens * clock.n_layers),
                prefills[plan],
                prefill_ms(plan, plan.counts(n_tokens), entering, layers, own),
                layers_ms(entering, layers),
            )
        )
    return found


def table(title: str, found: Sequence[Held]) -> Table:
    """The held-out plans as a table, by rising layer average of keep."""
    drawn = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    drawn.add_column("held-out plan", no_wrap=True)
    for heading in ("keep", "measured ms", "predicted ms", "error", "layers alone"):
        drawn.add_column(heading, justify="right")
    for held in sorted(found, key=lambda h: h.layer_average_keep):
        drawn.add_row(
            held.cuts,
            f"{held.layer_average_keep:.3f}",
            f"{held.measured_ms:.2f}",
            f"{held.predicted_ms:.2f}",
            f"{held.error:+.1%}",
            f"{held.layers_ms / held.measured_ms - 1:+.1%}",
        )
    return drawn


def embedded(device: str, dtype: torch.dtype, now: Callable[[], float]) -> Clock:
    """A clock of the built-in model with one of its questions."""
    from tpcal.calibrate.inputs import models
    from tpcal.calibrate.inputs.batches import prompt_inputs
    from tpcal.calibrate.inputs.samples import load_samples

    loaded = models.load(EMBEDDED, device=device, dtype=str(dtype).removeprefix("torch."))
    inputs = prompt_inputs(loaded.processor, [load_samples(n=1, split="eval")[0]], loaded.model)
    return Clock(loaded.model, inputs, now)


@click.command()
@click.option(
    "--geometry",
    "preset",
    type=click.Choice([EMBEDDED, *sorted(GEOMETRIES)]),
    default=EMBEDDED,
    show_default=True,
    help="The built-in model, or widths of a decoder with random weights.",
)
@click.option(
    "--layers", type=click.IntRange(min=5), help="Decoder layers; by default the geometry's."
)
@click.option("--text", "n_text", type=click.IntRange(min=4), default=64, show_default=True)
@click.option("--plans", "n_plans", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@run_options
@click.option("--strict", is_flag=True, help=f"Exit with {MISSED} where an error is above 10 %.")
def main(
    preset: str,
    layers: int | None,
    n_text: int,
    n_plans: int,
    seed: int,
    dtype: str,
    device: str,
    repeats: int,
    threads: int | None,
    clock: str,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Predict the milliseconds of held-out plans, and measure them."""
    now = timer(clock, threads, device)
    timing.N_REPEATS, timing.LONGEST_S = repeats, float("inf")
    if preset == EMBEDDED:
        timed = embedded(device, DTYPES[dtype], now)
    else:
        chosen = GEOMETRIES[preset].with_layers(layers)
        model = build(chosen, DTYPES[dtype], device)
        timed = Clock(model, prompt(chosen, n_text, DTYPES[dtype], device), now)
    found = run(timed, SELECTORS, held_out(n_plans, timed.n_layers, SELECTORS, seed))
    tokens = "{} + {} tokens".format(*timed.n_tokens)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table(f"{preset}, {timed.n_layers} layers, {dtype}, {tokens}", found))
    errors = [abs(held.error) for held in found]
    worst, middle = max(errors), statistics.median(errors)
    machine = hardware(device)
    console.print(f"Errors ({clock} time): median {middle:.1%}, largest {worst:.1%}. {machine}")
    if json_path is not None:
        setting = {"geometry": preset, "n_layers": timed.n_layers, "dtype": dtype}
        setting |= {"tokens": tokens, "repeats": repeats, "clock": clock, "hardware": machine}
        data = {"setting": setting, "plans": [asdict(h) | {"error": h.error} for h in found]}
        json_path.write_text(json.dumps(data, indent=2) + "\n")
    if strict and worst > WITHIN:
        sys.exit(MISSED)


if __name__ == "__main__":
    main()
