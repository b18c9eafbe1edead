"""What each selector asks of a GPU: launches, and waits of the host, counted on an emulated one.

One row of `N_TOKENS` tokens of one image keeps `N_KEEP`. Without Triton the greedy loops are many
operations; with it each loop is one, and counts as one here. Nothing is said about time.

    python benchmarks/launches.py
    TRITON_INTERPRET=1 python benchmarks/launches.py --triton

The second command needs Triton, which interprets its kernels on the CPU.
"""

from __future__ import annotations

import click
import torch
from emulated_gpu import EmulatedGpu
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from selection import VARIANTS, Case, Machine, tokens

from tpcal.plans.selectors import _fused, create
from tpcal.plans.selectors.base import Tokens

N_TOKENS, N_KEEP, HIDDEN = 576, 127, 256


def count(name: str, seen: Tokens, keep: int) -> tuple[int, int]:
    """Number of launches and of waits of one cut by the selector called ``name``."""
    selector = create(*VARIANTS[name])
    for _ in range(2):  # the first cut of a process also makes the tables that all cuts read
        with EmulatedGpu() as gpu:
            here = gpu.put_fields(seen)
            selector.merged(here, selector.select(here, gpu.put(torch.tensor([keep]))))
    return gpu.launches.total(), gpu.syncs.total()


@click.command()
@click.option("--triton", is_flag=True, help="Count each greedy loop as one launch.")
def main(triton: bool) -> None:
    """Count the launches and waits of every selector."""
    _fused.ENABLED = triton
    machine = Machine(HIDDEN, torch.float32, torch.device("cpu"), lambda: 0.0)
    seen = tokens(Case(1, N_TOKENS, N_KEEP / N_TOKENS), machine, torch.nn.Identity())
    drawn = Table("selector", "launches", "waits", box=SIMPLE)
    for name in VARIANTS:
        drawn.add_row(name, *map(str, count(name, seen, N_KEEP)))
    Console().print(drawn)


if __name__ == "__main__":
    main()
