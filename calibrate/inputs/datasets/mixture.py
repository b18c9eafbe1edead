"""Mixes of data sets by name: ``textvqa:64,chartqa:64``, ``lite``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from heapq import merge
from itertools import count, islice

from tpcal.calibrate.inputs.datasets.catalog import LITE, NamedDataset, catalog, lite
from tpcal.plans.errors import UsageError, excerpt, listed


@dataclass(frozen=True)
class Mixture:
    """Data sets by name, each with its part of the samples."""

    datasets: tuple[NamedDataset, ...]
    counts: tuple[int, ...] | None
    """Number of samples of each; None takes equal parts of any number."""

    def shares(self, n: int) -> tuple[int, ...]:
        """The number of samples of each data set among the first ``n`` samples of the mix."""
        turns = self.turns(n)
        return tuple(turns.count(i) for i in range(len(self.datasets)))

    def turns(self, n: int) -> list[int]:
        """[n] the data set of each sample, as an index.

        The turns of fewer samples are the first of those of more, and each part of them has the
        data sets in about their shares.

        Example:
            >>> from tpcal.calibrate.inputs.datasets.mixture import parse_mixture
            >>> parse_mixture("textvqa:4,gqa:2").turns(6)
            [0, 1, 0, 0, 1, 0]
        """
        # Sample k of a data set with the weight w comes at the time (k + 1/2) / w, so that before
        # the time 1 there are exactly w of them.
        weights = self.counts or (1,) * len(self.datasets)
        times = [_times(weight, i) for i, weight in enumerate(weights)]
        return [i for _, i in islice(merge(*times), n)]


def is_mixture(data: str) -> bool:
    """Whether the text names data sets of the catalog; the first name decides."""
    return data.partition(",")[0].partition(":")[0].strip() in {LITE, *catalog()}


def parse_mixture(text: str) -> Mixture:
    """The mix that a text names.

    Raises:
        UsageError: A name is unknown or named twice, or only some of them have a number.
    """
    names: list[str] = []
    numbers: list[int | None] = []
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        more = lite() if name == LITE else (name,)
        names += more
        numbers += [_number(part, number)] * len(more)
    known = catalog()
    for name in names:
        if name not in known:
            raise UsageError(_unknown(name))
        if names.count(name) > 1:
            raise UsageError(f"Every data set of a mix must be named once; got {name} twice.")
    counts = tuple(number for number in numbers if number is not None)
    if counts and len(counts) < len(names):
        raise UsageError(
            f"Every data set of a mix must have a number of samples, or none; got {excerpt(text)}."
        )
    return Mixture(tuple(known[name] for name in names), counts or None)


def _times(weight: int, index: int) -> Iterator[tuple[float, int]]:
    return (((k + 0.5) / weight, index) for k in count())


def _number(part: str, number: str) -> int | None:
    if ":" not in part:
        return None
    if not number.isdecimal() or not int(number):
        raise UsageError(f"{part} must have a number of samples of at least 1 behind the colon.")
    return int(number)


def _unknown(name: str) -> str:
    known = (LITE, *catalog())
    near = get_close_matches(name, known, 3)
    meant = f"; did you mean {listed(near)}?" if near else "."
    files = " Files cannot be part of a mix." if {".", "/", "\\"} & set(name) else ""
    return f"No data set is called {excerpt(name)}{meant} 'tpcal datasets' lists all.{files}"


def names_of(datasets: Sequence[NamedDataset]) -> str:
    """The names of a mix; ``lite`` for its subsets."""
    names = tuple(dataset.name for dataset in datasets)
    return LITE if names == lite() else ", ".join(names)
