"""Peak memory of a search against its samples and their tokens: python -m benchmarks.memory

A random LLaVA (hidden 256, 2 layers, float32) records batches of 8 prompts of different lengths
and replays a plan on each. Every cell runs in its own process; its peak does not count the loaded
model. ``held`` keeps the recorded passes as they are, ``host`` only the part that replays read,
and ``disk`` keeps that part in a file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = (32, 128)
SIDES = (12, 24)
"""Visual tokens along one side of an image."""
KEPT = ("held", "host", "disk")
BATCH = 8
N_TEXT = 40
IMAGE = 5


def main() -> None:
    """Prints the table, or one cell of it."""
    options = argparse.ArgumentParser(description=__doc__, add_help=True)
    options.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    options.add_argument("--sides", type=int, nargs="+", default=SIDES)
    options.add_argument("--cell", nargs=3, metavar=("KEPT", "SAMPLES", "SIDE"))
    chosen = options.parse_args()
    if chosen.cell:
        kept, n, side = chosen.cell
        print(peak(kept, int(n), int(side)))
        return
    table = Table("visual tokens", "samples", *(f"{kept}, MB" for kept in KEPT))
    for side in chosen.sides:
        for n in chosen.samples:
            cells = (measured(kept, n, side) for kept in KEPT)
            table.add_row(f"{side * side}", f"{n}", *(f"{size / 1e6:.0f}" for size in cells))
    Console().print(table)


def measured(kept: str, n: int, side: int) -> int:
    """The result of `peak`, in a process of its own."""
    cell = [sys.executable, "-m", "benchmarks.memory", "--cell", kept, str(n), str(side)]
    done = subprocess.run(cell, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def peak(kept: str, n: int, side: int) -> int:
    """Peak bytes of the process, above those with the model alone."""
    import torch

    from tpcal.calibrate.deviation import log_probabilities
    from tpcal.calibrate.tape import Tape
    from tpcal.calibrate.tape_store import Store
    from tpcal.plans.plan_records import Cut

    model = _model(side)
    cuts = (Cut(0, 0.5, "grid"), Cut(1, 0.0))
    before = _peak()
    held: list[tuple[Any, Any]] = []
    store = Store(0 if kept == "disk" else None)
    with torch.inference_mode():
        for inputs, positions in _batches(n, side):
            tape = Tape.record(model, inputs, every_layer=False)
            if kept == "held":
                full = log_probabilities(tape.logits(positions))
                held.append(((tape, full), positions))
            else:
                record = tape.recording.of_layer_0(), tape.answer_states(positions)
                held.append((store.keep(record), positions))
        for recorded, positions in held:
            if kept == "held":
                recorded[0].replay(cuts, positions)
            else:
                Tape(model, recorded.load()[0]).replay(cuts, positions)
    return _peak() - before


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _model(side: int) -> Any:
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.set_num_threads(1)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=4 * side,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=32000,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


def _batches(n: int, side: int) -> Iterator[tuple[dict[str, Any], Any]]:
    import torch

    for _ in range(0, n, BATCH):
        lengths = torch.arange(N_TEXT - BATCH, N_TEXT) + 1
        ids = torch.full((BATCH, side * side + N_TEXT), 7)
        ids[:, 1 : side * side + 1] = IMAGE
        mask = (torch.arange(ids.shape[1]) < (side * side + lengths)[:, None]).long()
        pixels = torch.zeros(BATCH, 3, 4 * side, 4 * side)
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
        positions = (side * side + lengths)[:, None] - torch.arange(3, 0, -1)
        yield inputs, positions


if __name__ == "__main__":
    main()
