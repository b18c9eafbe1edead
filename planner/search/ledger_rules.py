"""Checks of single values that a storage keeps; the ledger knows where they stand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tpcal.plans.plan_rules import read_cuts
from tpcal.plans.record_reader import Reader

_OWNER = re.compile(r".*:\d{1,9}")


def sample_losses(reader: Reader, losses: Mapping[Any, Any], n_samples: float, at: str) -> None:
    """Nats, 0 or more, by the number of a sample."""
    for sample, loss in losses.items():
        known = type(sample) is int and 0 <= sample < n_samples
        if not known or type(loss) not in (int, float) or not 0 <= loss < math.inf:
            reader.wrong(f"{at}: the loss of sample {sample}", "be a number", loss)


def owner(reader: Reader, given: Any, at: str) -> None:
    """A process of a host."""
    if not _OWNER.fullmatch(str(given)):
        reader.wrong(at, "be host:process", given)


def value(reader: Reader, given: Any, at: str) -> None:
    """A finite number."""
    if type(given) not in (int, float) or not math.isfinite(given):
        reader.wrong(at, "be a number", given)


def counts(reader: Reader, given: Any, at: str) -> None:
    """Natural numbers by name."""
    if not isinstance(given, Mapping) or not all(
        type(n) is int and n >= 0 for n in given.values()
    ):
        reader.wrong(at, "be a mapping to counts", given)


def margins(reader: Reader, given: Any, at: str) -> None:
    """Nats, 0 or more, by name."""
    if not isinstance(given, Mapping):
        reader.wrong(at, "be a mapping to numbers", given)
        return
    for group, number in given.items():
        reader.number(number, f"{at} of {group}", "loss")


def final(
    reader: Reader, given: Any, names: tuple[str, str], more: tuple[str, str], at: str
) -> None:
    """What a finalist lost: `means` under ``names``; margins and sizes under ``more``."""
    means(reader, given, names, None, at)
    if not isinstance(given, Mapping) or set(given) != {*names, *more}:
        reader.wrong(at, f"have {', '.join((*names, *more))}", given)
        return
    margins(reader, given[more[0]], f"{at}: {more[0]}")
    counts(reader, given[more[1]], f"{at}: {more[1]}")


def cuts(reader: Reader, given: Any, at: str) -> None:
    """Cuts of a plan with all their fields, on rising layers, each of which keeps fewer tokens."""
    mine = Reader()
    found = read_cuts(mine, given)
    layers, keeps = [cut.layer for cut in found], [cut.keep for cut in found]
    if layers != sorted(set(layers)) or keeps != sorted(keeps, reverse=True):
        mine.wrong("cuts", "stand on rising layers and keep ever fewer", given)
    for one in given if not mine.problems else ():
        if set(one) != {"layer", "keep", "selector", "params", "condition"}:
            mine.wrong("cuts", "have all their fields", sorted(one))
    reader.problems += [f"{at}: {problem}" for problem in mine.problems]


def means(
    reader: Reader, given: Any, names: tuple[str, str], groups: set[str] | None, at: str
) -> None:
    """Losses and shares of changed answers, each a number of every group.

    Args:
        reader: Collects what is wrong.
        given: Holds both under ``names``.
        names: Of the losses, and of the shares.
        groups: Groups that both must be of; None: any, the same in both.
        at: Where they stand.
    """
    parts = [given.get(name) for name in names] if isinstance(given, Mapping) else []
    found = [part for part in parts if isinstance(part, Mapping)]
    known = [set(part) for part in found]
    same = len(found) == 2 and known[0] == known[1] == (groups or known[0])
    if not same or not known[0]:
        reader.wrong(at, "have losses and changed answers of every group", given)
        return
    for name, part in zip(("loss", "flips"), found, strict=True):
        for group, number in part.items():
            reader.number(number, f"{at}: {name} of {group}", name)
