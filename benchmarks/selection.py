"""The cost of each selector on this machine, as a share of a prefill.

Selectors and one decoder layer take turns in one run. The time of a prefill is estimated as
`N_LAYERS` times that of the layer, over N visual and `N_TEXT` text tokens of one row, times the
rows of the batch; on a GPU the layer takes all rows at once. Reading the scores that a selector
asks for is the executor's work; `executor.py` times both together. Straightforward
implementations of some selectors (`references.py`) take turns with them too, row after row.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from machine import DTYPES, hardware, run_options, timer
from references import REFERENCES
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from tpcal.calibrate.bench.token_times import now
from tpcal.plans.selectors import create, names
from tpcal.plans.selectors.base import Counts, Selector, Tokens

N_LAYERS, N_TEXT = 32, 64
BTP_STAGE_1 = {
    "attention_share": 0.3,
    "over_selection": 3.7,
    "diversity_share": 0.3,
    "spatial_share": 0.5,
    "boundary": "count",
    "score": "raw",
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in names()},
    "balanced, BTP": ("balanced", BTP_STAGE_1),
    "diversity, max_sum": ("diversity", {"rule": "max_sum"}),
}


@dataclass(frozen=True)
class Case:
    """One size of input."""

    batch: int
    n_tokens: int
    keep: float


@dataclass(frozen=True)
class Result:
    """Medians over the repeats of one selector and one case."""

    selector: str
    batch: int
    n_tokens: int
    keep: float
    ms: float
    prefill_ms: float
    share: float
    """Share of the prefill; the median of the shares of the repeats."""
    to_reference: float | None
    """Time as a share of the reference's for all rows; None for selectors without one."""


@dataclass(frozen=True)
class Machine:
    """The device, precision, width and clock of the measurement."""

    hidden: int
    dtype: torch.dtype
    device: torch.device
    clock: Callable[[], float]

    @property
    def n_heads(self) -> int:
        """Number of attention heads of 128 dimensions."""
        return max(1, self.hidden // 128)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Time of the work, in seconds."""
        started = self._now()
        work()
        return self._now() - started

    def _now(self) -> float:
        return now(self.device, self.clock)


def decoder_layer(machine: Machine) -> LlamaModel:
    """A decoder of one layer with the proportions of Llama 7B (4096, 11008, 32 heads)."""
    config = LlamaConfig(
        hidden_size=machine.hidden,
        intermediate_size=machine.hidden * 11008 // 4096,
        num_hidden_layers=1,
        num_attention_heads=machine.n_heads,
        vocab_size=8,
        use_cache=False,
    )
    with machine.device:
        model = LlamaModel._from_config(config, dtype=machine.dtype, attn_implementation="sdpa")
    return model.eval()


def tokens(case: Case, machine: Machine, norm: nn.Module) -> Tokens:
    """Random tokens of one square image in each row, with everything that any selector reads."""
    generator = torch.Generator().manual_seed(0)
    batch, n, n_keep = case.batch, case.n_tokens, round(case.keep * case.n_tokens)
    side = math.isqrt(max(n, 1) - 1) + 1
    place = torch.arange(n, device=machine.device).expand(batch, n)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(machine.device, machine.dtype)

    logits = noise(batch, machine.n_heads, n)
    return Tokens(
        layer=2,
        hidden=noise(1, 1, machine.hidden) + noise(batch, n, machine.hidden),
        valid=torch.ones_like(place, dtype=torch.bool),
        index=place,
        image=torch.zeros_like(place),
        n_original=torch.full((batch,), n, device=machine.device),
        grid_row=place // side,
        grid_col=place % side,
        grid_shape=place.new_full((batch, n, 2), side),
        logits=logits,
        lse=logits.float().logsumexp(-1) + 1,
        keys=noise(batch, n, machine.hidden),
        text_hidden=noise(batch, N_TEXT, machine.hidden),
        text_valid=torch.ones(batch, N_TEXT, dtype=torch.bool, device=machine.device),
        text_keys=noise(batch, N_TEXT, machine.hidden),
        text_attention=noise(batch, N_TEXT, n).float().softmax(-1),
        final_norm=norm,
        vision_scores=noise(batch, n).float(),
        vision_keys=noise(batch, n, 64),
        counts=Counts(  # as the executor knows them, so that no selector waits for the device
            (n,) * batch, (n_keep,) * batch, n_images=(1,) * batch, n_text=(N_TEXT,) * batch
        ),
    )


def cut(selector: Selector, seen: Tokens, n_keep: Tensor) -> None:
    """The whole work of a selector at a cut: to select tokens, and to merge the others."""
    selector.merged(seen, selector.select(seen, n_keep))


def by_reference(name: str, seen: Tokens, n_keep: int) -> None:
    """The reference's choice in every row."""
    for row in range(len(seen.hidden)):
        REFERENCES[name](seen, row, n_keep)


def measure(
    case: Case, chosen: Sequence[str], machine: Machine, layer: LlamaModel, n_repeats: int
) -> list[Result]:
    """The results of all selectors on one case; the layer and the selectors take turns."""
    seen = tokens(case, machine, layer.norm)
    made = {name: create(*VARIANTS[name]) for name in chosen}
    n_keep = torch.full((case.batch,), round(case.keep * case.n_tokens), device=machine.device)
    # A GPU has room to work on rows at once; on a CPU they take as long as one after another.
    together = case.batch if machine.device.type == "cuda" else 1
    states = torch.randn(together, case.n_tokens + N_TEXT, machine.hidden).to(seen.hidden)
    n_layers = N_LAYERS * case.batch / together
    prefill: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in chosen}
    beside: dict[str, list[float]] = {name: [] for name in chosen if name in REFERENCES}
    for repeat in range(n_repeats + 1):  # the first round warms up
        one = machine.seconds(lambda: layer(inputs_embeds=states)) * n_layers
        rounds = {
            name: machine.seconds(partial(cut, selector, seen, n_keep))
            for name, selector in made.items()
        }
        plain = {
            name: machine.seconds(partial(by_reference, name, seen, int(n_keep[0])))
            for name in beside
        }
        if repeat:
            prefill.append(one)
            for name, seconds in rounds.items():
                taken[name].append(seconds)
            for name, seconds in plain.items():
                beside[name].append(rounds[name] / seconds)
    return [
        Result(
            name,
            **asdict(case),
            ms=1e3 * statistics.median(seconds),
            prefill_ms=1e3 * statistics.median(prefill),
            share=statistics.median(s / p for s, p in zip(seconds, prefill, strict=True)),
            to_reference=statistics.median(beside[name]) if name in beside else None,
        )
        for name, seconds in taken.items()
    ]


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """One table for each batch size and keep; a column for each number of tokens."""
    for batch, keep in sorted({(r.batch, r.keep) for r in results}):
        here = [r for r in results if (r.batch, r.keep) == (batch, keep)]
        sizes = sorted({r.n_tokens for r in here})
        drawn = Table(title=f"batch {batch}, keep {keep:.0%}: ms and % of prefill", box=SIMPLE)
        drawn.add_column("selector")
        for n in sizes:
            drawn.add_column(f"N = {n}", justify="right")
            drawn.add_column("%", justify="right")
        for name in dict.fromkeys(r.selector for r in here):
            row = {r.n_tokens: r for r in here if r.selector == name}
            drawn.add_row(name, *(text for n in sizes for text in _figures(row.get(n))))
        ms = {r.n_tokens: r.prefill_ms for r in here}
        drawn.add_section()
        drawn.add_row("prefill", *(text for n in sizes for text in (f"{ms[n]:.0f}", "")))
        yield drawn


def _figures(result: Result | None) -> tuple[str, str]:
    return ("", "") if result is None else (f"{result.ms:.2f}", f"{result.share:.3%}"[:-1])


def _several(kind: type, default: Sequence[Any], help_text: str) -> dict[str, Any]:
    return {
        "type": kind,
        "multiple": True,
        "default": default,
        "show_default": True,
        "help": f"{help_text} May be given several times.",
    }


@click.command()
@click.option("--tokens", "sizes", **_several(int, (576, 1296, 2880), "Visual tokens N."))
@click.option("--batch", "batches", **_several(int, (1, 8), "Rows."))
@click.option("--keep", "keeps", **_several(float, (0.22, 0.11), "Share of tokens kept."))
@click.option(
    "--selector",
    "chosen",
    type=click.Choice(list(VARIANTS)),
    multiple=True,
    help="Only this one. May be given several times.",
)
@click.option("--hidden", type=click.IntRange(min=8), default=4096, show_default=True)
@run_options
def main(
    sizes: Sequence[int],
    batches: Sequence[int],
    keeps: Sequence[float],
    chosen: Sequence[str],
    hidden: int,
    dtype: str,
    device: str,
    repeats: int,
    threads: int | None,
    clock: str,
    json_path: Path | None,
) -> None:
    """Time every selector and its share of one prefill of a 7B decoder's geometry."""
    now = timer(clock, threads, device)
    torch.manual_seed(0)
    machine = Machine(hidden, DTYPES[dtype], torch.device(device), now)
    cases = [Case(b, n, k) for n in sizes for b in batches for k in keeps]
    console, results = Console(), []
    shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    try:
        with torch.inference_mode(), Progress(*shown, console=console, transient=True) as bar:
            layer, task = decoder_layer(machine), bar.add_task("cases", total=len(cases))
            for case in cases:
                bar.update(task, description=f"N = {case.n_tokens}, batch {case.batch}")
                results += measure(case, chosen or list(VARIANTS), machine, layer, repeats)
                bar.advance(task)
    except KeyboardInterrupt:
        console.print("Interrupted; this is what was finished.")
    for drawn in tables(results):
        console.print(drawn)
    for r in results:
        if r.to_reference is not None:
            where = f"N = {r.n_tokens}, batch {r.batch}, keep {r.keep:.0%}"
            console.print(f"{where}, {r.selector}: {r.to_reference:.2f} times its reference")
    setting = f"{dtype}, hidden size {hidden}, {clock} time, median of {repeats}"
    console.print(
        f"Prefill: {N_LAYERS} times one decoder layer over N + {N_TEXT} tokens, timed in turns "
        f"with the selectors, of the whole batch. {setting}. {hardware(device)}"
    )
    if json_path is not None:
        data = {"setting": setting, "hardware": hardware(device)}
        data["results"] = [asdict(result) for result in results]
        json_path.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
