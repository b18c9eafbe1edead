"""Measures the shipped model and writes its card's tables: ``python -m tools.embedded.card``.

The tables come from the ``test`` split, on which no choice was made; ``--split eval`` prints them
without writing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.embedded.answers import Drop, Examinee, by_group, text_only
from tpcal.calibrate.embedded import FOLDER
from tpcal.calibrate.embedded.questions import GROUPS
from tpcal.calibrate.embedded.scenes import SPLITS, EmbeddedSample, samples

CARD = FOLDER.parent / "MODEL_CARD.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RANDOM_KEEPS = (72, 32, 16)
"""Tokens of 144 that random pruning keeps before the decoder: 50, 22 and 11 %."""


def main(arguments: list[str] | None = None) -> None:
    """Measures, and writes or prints."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.card")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--n", type=int, default=200 * len(GROUPS))
    options = parser.parse_args(arguments)
    text = tables(options.folder, options.split, options.n)
    if options.split == "test":
        write(CARD, text)
    else:
        sys.stdout.write(f"{text}\n")


def write(card: Path, text: str) -> None:
    """Puts the measured tables between the marks of a card."""
    before, rest = card.read_text().split(BEGIN)
    card.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def tables(folder: Path, split: str, n: int) -> str:
    """The two tables as markdown."""
    examinee, asked = Examinee(folder), samples(split, n)
    full = examinee.right(asked)
    floor = text_only(asked)
    drops = {f"drop all @{i}": Drop(i, 0) for i in range(examinee.n_layers)}
    drops |= {f"random {k} @0": Drop(0, k) for k in RANDOM_KEEPS}
    pruned = {name: examinee.right(asked, drop) for name, drop in drops.items()}
    intro = (
        f"`{split}` split, {n} questions, {n // len(GROUPS)} a group; exact match of the whole "
        "answer.\n"
    )
    return "\n".join(
        (
            intro,
            _group_table(asked, full, floor, pruned["random 32 @0"]),
            "",
            _curve_table(asked, {"unpruned": full, **pruned, "text only": floor}),
        )
    )


def _group_table(
    asked: Sequence[EmbeddedSample], full: list[bool], floor: list[bool], few: list[bool]
) -> str:
    columns = [by_group(asked, right) for right in (full, floor, few)]
    lines = [
        "| group | n | accuracy | text-only floor | random 22 % before layer 0 |",
        "|---|" + "---:|" * 4,
    ]
    for group in GROUPS:
        n = sum(s.group == group for s in asked)
        lines.append(f"| {group} | {n} | " + " | ".join(f"{c[group]:.3f}" for c in columns) + " |")
    means = " | ".join(f"{sum(right) / len(right):.3f}" for right in (full, floor, few))
    return "\n".join((*lines, f"| **all** | {len(asked)} | {means} |"))


def _curve_table(asked: Sequence[EmbeddedSample], rows: dict[str, list[bool]]) -> str:
    lines = ["| visual tokens | all | " + " | ".join(GROUPS) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(GROUPS)))
    for name, right in rows.items():
        groups = by_group(asked, right)
        cells = " | ".join(f"{groups[g]:.2f}" for g in GROUPS)
        lines.append(f"| {name} | {sum(right) / len(right):.3f} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
