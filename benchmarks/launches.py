"""What selectors and the executor ask of a GPU: launches, and waits, counted on an emulated one.

First, one row of `N_TOKENS` tokens of one image keeps `N_KEEP`. Without Triton the greedy loops
are many operations; with it each loop is one, and counts as one here. Then, plans prune a prefill
of LLaVA with small widths. Nothing is said about time.

    python benchmarks/launches.py
    TRITON_INTERPRET=1 python benchmarks/launches.py --triton

The second command needs Triton, which interprets its kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import click
import torch
from emulated_gpu import EmulatedGpu
from executor import plans
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from selection import N_TEXT, VARIANTS, Case, Machine, tokens
from stopwatch import stopwatch
from torch import Tensor

from tpcal.calibrate.bench.generation_times import applied
from tpcal.calibrate.bench.geometry import GEOMETRIES, build, prompts
from tpcal.calibrate.bench.prompt_sizes import PromptSize
from tpcal.plans.plan_records import Plan
from tpcal.plans.selectors import _fused, create
from tpcal.plans.selectors.base import Tokens

N_TOKENS, N_KEEP, HIDDEN = 576, 127, 256
GEOMETRY, BUDGET = GEOMETRIES["tiny"], 0.22


def count(name: str, seen: Tokens, keep: int) -> tuple[int, int]:
    """Number of launches and of waits of one cut by the selector called ``name``."""
    selector = create(*VARIANTS[name])
    for _ in range(2):  # the first cut of a process also makes the tables that all cuts read
        with EmulatedGpu() as gpu:
            here = gpu.put_fields(seen)
            selector.merged(here, selector.select(here, gpu.put(torch.tensor([keep]))))
    return gpu.launches.total(), gpu.syncs.total()


class Prefill(NamedTuple):
    """Numbers of one prefill."""

    launches: int
    executor: int
    """Launches of the executor alone, without selection."""
    selection: int
    """Launches of selectors and of the score rows that they read."""
    waits: int


def count_prefill(plan: Plan | None, n_rows: int, dtype: torch.dtype) -> Prefill:
    """The launches and waits of a prefill of ``n_rows`` prompts of different lengths."""
    model = build(GEOMETRY, dtype, "cpu")
    inputs = prompts(GEOMETRY, PromptSize(batch_size=n_rows, n_text=N_TEXT), dtype, "cpu")
    if n_rows == 1:
        del inputs["attention_mask"]
    with torch.no_grad(), EmulatedGpu() as gpu, applied(model, plan):
        gpu.put_module(model)
        here = {name: _put(gpu, value) for name, value in inputs.items()}
        model.model(**here)  # the first one also makes the tables that all prefills read
        gpu.launches.clear()
        gpu.syncs.clear()
        with stopwatch(gpu.launches.total) as spent:
            model.model(**here)
    own, selection = int(spent["executor"]), int(spent["selection"])
    return Prefill(gpu.launches.total(), own - selection, selection, gpu.syncs.total())


def _put(gpu: EmulatedGpu, value: Any) -> Any:
    """An input on the device; encoded images are mappings of tuples."""
    if isinstance(value, Tensor):
        return gpu.put(value)
    if isinstance(value, Mapping):
        kind: Any = type(value)
        return kind({name: _put(gpu, part) for name, part in value.items()})
    return tuple(_put(gpu, part) for part in value)


def selectors() -> Table:
    """The launches and waits of every selector."""
    machine = Machine(HIDDEN, torch.float32, torch.device("cpu"), lambda: 0.0)
    seen = tokens(Case(1, N_TOKENS, N_KEEP / N_TOKENS), machine, torch.nn.Identity())
    drawn = Table("selector", "launches", "waits", box=SIMPLE)
    for name in VARIANTS:
        drawn.add_row(name, *map(str, count(name, seen, N_KEEP)))
    return drawn


def prefills(n_rows: int) -> Table:
    """The launches and waits of a prefill with every plan."""
    columns = "executor", "selection", "all", "waits"
    drawn = Table("plan", *columns, title=f"prefill of {n_rows}, bfloat16", box=SIMPLE)
    made = plans(GEOMETRY.n_layers, GEOMETRY.n_visual, BUDGET)
    for name, plan in {"unpruned": None, **made}.items():
        found = count_prefill(plan, n_rows, torch.bfloat16)
        figures = found.executor, found.selection, found.launches, found.waits
        drawn.add_row(name, *map(str, figures))
    return drawn


@click.command()
@click.option("--triton", is_flag=True, help="Count each greedy loop as one launch.")
def main(triton: bool) -> None:
    """Count the launches and waits of every selector, and of the executor."""
    _fused.ENABLED = triton
    console = Console()
    console.print(selectors())
    for n_rows in (1, 2):
        console.print(prefills(n_rows))


if __name__ == "__main__":
    main()
