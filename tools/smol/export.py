"""Writes what was trained into the package: ``python -m tools.smol.export --out FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from tpcal.calibrate.smol.assemble import ADAPTERS


def main(arguments: list[str] | None = None) -> None:
    """Exports as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.smol.export")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--weights", type=Path, default=ADAPTERS, help="file to write")
    options = parser.parse_args(arguments)
    export(options.out / "checkpoint.pt", options.weights)


def export(checkpoint: Path, file: Path) -> None:
    """Writes the projector and the adapters of a checkpoint in bfloat16."""
    trained = torch.load(checkpoint, weights_only=True)["trained"]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.to(torch.bfloat16).contiguous() for n, t in trained.items()}, file)
    file.chmod(0o644)


if __name__ == "__main__":
    main()
