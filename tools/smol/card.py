"""Measures the assembled model and writes its card's table: ``python -m tools.smol.card``.

The table comes from the ``test`` split, on which no choice was made; ``--split eval`` prints it
without writing.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from tools.embedded.card import write
from tools.smol.answers import Answers, Examinee
from tpcal.calibrate.embedded.questions import GROUPS
from tpcal.calibrate.embedded.scenes import SPLITS
from tpcal.calibrate.smol.assemble import assembled_folder

CARD = Path(__file__).parents[2] / "calibrate" / "smol" / "MODEL_CARD.md"


def main(arguments: list[str] | None = None) -> None:
    """Measures, and writes or prints."""
    parser = argparse.ArgumentParser(prog="python -m tools.smol.card")
    parser.add_argument(
        "--folder", type=Path, help="an assembled model other than the shipped one"
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--layers", default=",".join(map(str, range(0, 30, 2))))
    options = parser.parse_args(arguments)
    examinee = Examinee(options.folder or assembled_folder())
    layers = [int(layer) for layer in options.layers.split(",")]
    text = table(
        options.split, options.images, examinee.answers(options.split, options.images, layers)
    )
    if options.split == "test" and options.folder is None:
        write(CARD, text)
    else:
        sys.stdout.write(f"{text}\n")


def table(split: str, n_images: int, found: dict[int, Answers]) -> str:
    """Accuracies as markdown, a row per layer before which all visual tokens are dropped."""
    full = max(found)
    n = sum(map(len, found[full].values()))
    asked = [group for group in GROUPS if found[full].get(group)]
    lines = [
        f"`{split}` split, {n_images} images, {n} questions; exact match of the whole answer.\n",
        "| visual tokens | all | " + " | ".join(asked) + " |",
        "|---|" + "---:|" * (1 + len(asked)),
        f"| questions | {n} | " + " | ".join(str(len(found[full][g])) for g in asked) + " |",
    ]
    for layer in sorted(found, reverse=True):
        name = "unpruned" if layer == full else f"drop all @{layer}"
        answers = found[layer]
        cells = " | ".join(f"{sum(answers[g]) / len(answers[g]):.2f}" for g in asked)
        right = sum(chain.from_iterable(answers.values()))
        lines.append(f"| {name} | {right / n:.3f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
