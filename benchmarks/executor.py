"""Savings of a plan on this machine, and the cost of executing it.

Pruned and unpruned passes take turns in one run, so that all figures are ratios of times measured
within the same minutes. Weights are random, because time does not depend on them. The figures of
the decoder leave out the vision tower and the output head. Whole requests stand beside them: calls
of `generate` with pixels, whose tower is as wide as LLaVA's (LLaVA geometries only).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from machine import DTYPES, hardware, run_options, timer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stopwatch import Bench, Seconds, measure, peak
from whole_requests import BY_HAND, Requests, build_with_tower

from tpcal.calibrate.bench.geometry import GEOMETRIES, IMAGE, build, prompt
from tpcal.calibrate.bench.ratios import Spread
from tpcal.plans.budget_projection import project
from tpcal.plans.cost import plan_cost
from tpcal.plans.executor import handle
from tpcal.plans.families import decoder_shape
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import Cost, Cut, Plan

MISSED = 6  # exit code


@dataclass(frozen=True)
class Target:
    """A bound that a figure must keep."""

    figure: str
    says: str
    holds: Callable[[float], bool]


TARGETS = (
    Target("achieved", "achieved / ideal at least 0.90", lambda x: x >= 0.90),
    Target(
        "overhead", "selection + executor at most 1 % of the unpruned prefill", lambda x: x <= 0.01
    ),
    Target(
        "decode_least",
        "decode step not slower than unpruned, within its spread",
        lambda x: x <= 1.0,
    ),
    Target("memory", "peak memory not above unpruned", lambda x: x <= 1.0),
)


@dataclass(frozen=True)
class Figures:
    """The figures of one plan, ratios to the unpruned run."""

    name: str
    layer_average_keep: float
    speed_up: float
    speed_up_spread: float
    """Half of the distance between the quartiles of the repeats."""
    speed_up_wall: float
    """Speed-up in wall time, whichever clock the other times are taken with."""
    ideal: float
    """Ratio of FLOPs of the decoder's layers, without those of choosing the tokens."""
    reachable: float
    """Speed-up if each layer took its share of an unpruned prefill as short as its input."""
    achieved: float
    """speed_up / ideal."""
    overhead: float
    """Time inside the executor and selection, as a share of the unpruned prefill."""
    selection: float
    """Time of score rows and selectors alone, as a share of the unpruned prefill."""
    decode: float
    """Time of a decode step, as a share of an unpruned one."""
    decode_least: float
    """Lower quartile of ``decode`` over the repeats."""
    memory: float
    """Peak memory, as a share of the unpruned prefill's."""
    kv: float
    """Bytes of the cache, as a share of the unpruned cache's."""


def plans(n_layers: int, n_visual: int, budget: float) -> dict[str, Plan]:
    """Plans of one layer average of keep; the last has the cuts of another and drops nothing."""
    three = (1 / 8, 0.28), (3 / 8, 0.08), (11 / 16, 0.0)
    sets = {
        "grid @0": [Cut(0, budget, "grid")],
        "attention @1": [Cut(1, 0.1, "attention")],
        "dart x3": _cuts(three, "dart", n_layers),
        "attention x3": _cuts(three, "attention", n_layers),
        "BTP": list(load_preset("btp-llava-released", n_layers).cuts),
    }
    made = {
        name: Plan(project(cuts, budget, n_visual, n_layers), name=name)
        for name, cuts in sets.items()
    }
    cuts = [Cut(c.layer, 1.0, "attention") for c in made["attention x3"].cuts]
    return {**made, "no-op x3": Plan(tuple(cuts), name="no-op x3")}


def _cuts(schedule: Sequence[tuple[float, float]], selector: str, n_layers: int) -> list[Cut]:
    return [
        Cut(max(1, round(depth * n_layers)), keep, selector if keep else None)
        for depth, keep in schedule
    ]


def figures(
    name: str, mine: Seconds, base: Seconds, reachable: float, cost: Cost, memory: float, kv: float
) -> Figures:
    """The ratios of one plan, as medians over the repeats of one run."""
    # Ratios are formed within each repeat, whose two passes are neighbours in time, and only then
    # is the median taken: slow minutes of the machine cancel. The ideal speed-up is FLOPs of all
    # tokens / FLOPs of the kept tokens, so that the time of choosing tokens counts as a loss.
    ratios = [b / m for b, m in zip(base.prefill, mine.prefill, strict=True)]
    walls = [b / m for b, m in zip(base.prefill_wall, mine.prefill_wall, strict=True)]
    steps = [m / b for b, m in zip(base.decode, mine.decode, strict=True)]
    unpruned = statistics.median(base.prefill)
    assert cost.selection_flops is not None
    ideal = cost.unpruned_prefill_flops / (cost.prefill_flops - cost.selection_flops)
    speed_up = Spread.of(ratios)
    return Figures(
        name,
        layer_average_keep=cost.layer_average_keep,
        speed_up=speed_up.median,
        speed_up_spread=speed_up.half,
        speed_up_wall=statistics.median(walls),
        ideal=ideal,
        reachable=reachable,
        achieved=speed_up.median / ideal,
        overhead=statistics.median(mine.executor) / unpruned,
        selection=statistics.median(mine.selection) / unpruned,
        decode=statistics.median(steps),
        decode_least=Spread.of(steps).low,
        memory=memory,
        kv=kv,
    )


def run(
    bench: Bench, made: dict[str, Plan], n_text: int, n_repeats: int, progress: Progress
) -> tuple[Seconds, list[Figures]]:
    """The unpruned model's times, and the figures of every plan."""
    bar = progress.add_task("measuring", total=n_repeats + 1 + len(made))
    shape = replace(decoder_shape(bench.model), vocab=0)  # no output head
    n_visual = int((bench.inputs["input_ids"] == IMAGE).sum())
    lengths = {
        name: [n + n_text for n in plan.schedule(n_visual, shape.n_layers)]
        for name, plan in made.items()
    }
    short = {n for counts in lengths.values() for n in counts} - {n_visual + n_text}
    times = measure(bench, made, short, n_repeats, lambda: progress.advance(bar))
    unpruned, full_kv = peak(bench, None), sum(handle.kv_bytes(bench.prefill()))
    results = []
    for name, plan in made.items():
        with handle.apply(bench.model, plan):
            kv = sum(handle.kv_bytes(bench.prefill())) / full_kv
        cost = plan_cost(plan, shape, n_visual, n_text)
        memory, reachable = peak(bench, plan) / unpruned, times.reachable(lengths[name])
        mine = times.plans[name]
        results.append(figures(name, mine, times.unpruned, reachable, cost, memory, kv))
        progress.advance(bar)
    return times.unpruned, results


def table(title: str, results: Sequence[Figures]) -> Table:
    """The figures of all plans as a table."""
    drawn = Table(
        title=title,
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="Ratios to unpruned. ideal: by FLOPs · reach: by unpruned prefills as short · "
        "achieved: speed-up / ideal\nexecutor, select (a part of it): time of their own in % of "
        "the unpruned prefill",
    )
    drawn.add_column("plan", no_wrap=True)
    for heading in (
        "keep",
        "speed-up",
        "ideal",
        "reach",
        "achieved",
        "executor",
        "select",
        "decode",
        "memory",
        "KV",
    ):
        drawn.add_column(heading, justify="right")
    for f in results:
        drawn.add_row(
            f.name,
            f"{f.layer_average_keep:.3f}",
            f"{f.speed_up:.2f}±{f.speed_up_spread:.2f}",
            f"{f.ideal:.2f}",
            f"{f.reachable:.2f}",
            f"{f.achieved:.2f}",
            f"{f.overhead:.2%}",
            f"{f.selection:.2%}",
            f"{f.decode:.2f}",
            f"{f.memory:.3f}",
            f"{f.kv:.3f}",
        )
    return drawn


def verdicts(results: Sequence[Figures]) -> list[tuple[str, bool, str]]:
    """For each target: its text, whether every plan reaches it, and the plans that do not.

    The plan that drops nothing is judged by the executor's own time only.
    """
    rows = []
    for target in TARGETS:
        judged = [f for f in results if f.layer_average_keep < 1 or target.figure == "overhead"]
        missed = [f.name for f in judged if not target.holds(getattr(f, target.figure))]
        rows.append((target.says, not missed, ", ".join(missed)))
    return rows


def whole_line(whole: Mapping[str, float], n_new: int, n_tower: int) -> str:
    """The unpruned time of whole requests, and the speed-ups of all ways to answer them."""
    ways = ", ".join(f"{name} {ratio:.2f}" for name, ratio in whole.items() if name != "unpruned")
    return (
        f"Whole requests (generate: tower of {n_tower} layers, prefill, head, {n_new} new "
        f"tokens): unpruned {1000 * whole['unpruned']:.1f} ms; speed-up: {ways}. {BY_HAND!r} "
        "gives generate the embeddings of evenly spaced features, without tpcal."
    )


@click.command()
@click.option(
    "--geometry",
    "preset",
    type=click.Choice(sorted(GEOMETRIES)),
    default="llava-1.5-7b",
    show_default=True,
    help="Widths of the decoder.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=5),
    default=8,
    show_default=True,
    help="Decoder layers.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.22,
    show_default=True,
    help="Layer average of keep of the plans.",
)
@click.option(
    "--text",
    "n_text",
    type=click.IntRange(min=4),
    default=64,
    show_default=True,
    help="Text tokens of the prompt.",
)
@click.option(
    "--decode",
    "n_decode",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Decode steps per repeat.",
)
@click.option(
    "--tower-layers",
    type=click.IntRange(min=2),
    default=24,
    show_default=True,
    help="Layers of the vision tower of whole requests; LLaVA-1.5 has 24.",
)
@run_options
@click.option("--strict", is_flag=True, help=f"Exit with {MISSED} where a target is missed.")
def main(
    preset: str,
    layers: int,
    dtype: str,
    device: str,
    budget: float,
    n_text: int,
    repeats: int,
    n_decode: int,
    tower_layers: int,
    threads: int | None,
    clock: str,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Time plans of one layer average against the unpruned model, with random weights."""
    now = timer(clock, threads, device)
    console = Console()
    console.width = max(console.width, 100)
    chosen = GEOMETRIES[preset].with_layers(layers)
    with torch.inference_mode(), Progress(console=console, transient=True) as progress:
        progress.add_task("building the model", total=None)
        llava = chosen.family == "llava"
        if llava:
            model = build_with_tower(chosen, tower_layers, DTYPES[dtype], device)
        else:
            model = build(chosen, DTYPES[dtype], device)
        inputs = prompt(chosen, n_text, DTYPES[dtype], device)
        made = plans(chosen.n_layers, chosen.n_visual, budget)
        bench = Bench(model, inputs, n_decode, now)
        base, results = run(bench, made, n_text, repeats, progress)
        progress.add_task("whole requests", total=None)
        requests = Requests(model, inputs["input_ids"], n_decode + 1, now)
        whole = requests.seconds(made, budget, repeats) if llava else {}
    machine = hardware(device)
    title = f"{preset}, {chosen.n_layers} layers, {dtype}, {chosen.n_visual} + {n_text} tokens"
    console.print(table(title, results))
    unpruned, step = (1000 * statistics.median(x) for x in (base.prefill, base.decode))
    console.print(
        f"Unpruned ({clock} time): prefill {unpruned:.1f} ms, decode step {step:.2f} ms. {machine}"
    )
    if whole:
        console.print(whole_line(whole, n_decode + 1, tower_layers))
    rows = verdicts(results)
    for says, holds, missed in rows:
        console.print(
            f"{'holds ' if holds else 'MISSED'}  {says}" + (f": {missed}" if missed else "")
        )
    if json_path is not None:
        data = {
            "setting": {
                **asdict(chosen),
                "dtype": dtype,
                "device": device,
                "n_text": n_text,
                "repeats": repeats,
                "clock": clock,
                "hardware": machine,
            },
            "unpruned_prefill_ms": unpruned,
            "unpruned_decode_ms": step,
            "plans": [asdict(f) for f in results],
            "whole_requests": whole,
            "targets": [{"target": says, "holds": holds} for says, holds, _ in rows],
        }
        json_path.write_text(json.dumps(data, indent=2) + "\n")
    if strict and not all(holds for _, holds, _ in rows):
        sys.exit(MISSED)


if __name__ == "__main__":
    main()
