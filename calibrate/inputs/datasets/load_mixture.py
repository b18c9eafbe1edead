"""Samples of a mix of data sets by name, each data set a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tpcal.calibrate.inputs.datasets.catalog import NamedDataset
from tpcal.calibrate.inputs.datasets.hub_rows import hub_rows
from tpcal.calibrate.inputs.datasets.mixture import Mixture, names_of, parse_mixture
from tpcal.calibrate.inputs.datasets.standard_rows import StandardRows
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_size import DEFAULT_N, LEAST_OF_GROUP
from tpcal.calibrate.inputs.samples import Samples, Source, read_sample, with_way_out
from tpcal.calibrate.inputs.sampling import Drawing, Place
from tpcal.calibrate.inputs.sources import ROLES, RawTable
from tpcal.plans.errors import UsageError


@dataclass(frozen=True)
class MixtureDraw:
    """How samples are drawn from a mix."""

    n: int | None = None
    """Number of samples in all; None takes the numbers of the mix, or the default of the role."""
    seed: int = 0
    split: str = "calibration"
    """A role; data sets of the catalog have one split each."""
    metric: str | None = None
    """Metric in place of those of the data sets."""
    skip_bad: bool = False


@dataclass(frozen=True)
class _Part:
    """The samples that are drawn from one data set."""

    dataset: NamedDataset
    rows: StandardRows
    drawing: Drawing
    places: Sequence[Place]
    n_rows: int


def n_of(mixture: Mixture, draw: MixtureDraw) -> int:
    """The number of samples to draw."""
    if draw.n is not None:
        return draw.n
    if mixture.counts:
        return sum(mixture.counts)
    default = DEFAULT_N.get(draw.split, DEFAULT_N["eval"])
    return max(default, LEAST_OF_GROUP * len(mixture.datasets))


def load_mixture(data: str, draw: MixtureDraw) -> Samples:
    """The samples of a mix, data sets in turn.

    Args:
        data: Names, such as ``textvqa:64,chartqa:64`` or ``lite``.
        draw: How many samples are drawn, and which.

    Raises:
        UsageError: A name is unknown, or a data set cannot be loaded or read.
    """
    mixture = parse_mixture(data)
    if draw.split not in ROLES:
        raise UsageError(
            f"--split must be one of {', '.join(ROLES)} for {data}, as data sets by name have one "
            f"split each; got {draw.split}."
        )
    n = n_of(mixture, draw)
    shares = mixture.shares(n)
    parts = [_part(dataset, k, draw) for dataset, k in zip(mixture.datasets, shares, strict=True)]
    recipe = {"data": data, "split": draw.split, "samples": n, "seed": draw.seed}
    recipe |= {"metric": draw.metric} if draw.metric else {}
    rows = list(_in_turn(mixture.turns(n), parts))

    def read(row: tuple[int, Place]) -> Sample:
        return _read(parts[row[0]], row[1], draw)

    name = names_of(mixture.datasets)
    description = f"{len(rows)} samples of {name} ({draw.split}, seed {draw.seed})"
    drawn = Samples(name, description, rows, read, recipe, _source(parts))
    drawn.answer_tokens = max(dataset.answer_tokens for dataset in mixture.datasets)
    _ = drawn.fingerprint  # reads every sample, so that one that cannot be read ends this call
    return drawn


def _part(dataset: NamedDataset, n: int, draw: MixtureDraw) -> _Part:
    found = hub_rows(dataset, split=draw.split, seed=draw.seed)
    columns = found.rows.columns
    table = RawTable(dataset.name, found.rows, tuple(vars(columns)))
    drawing = Drawing(table, columns)
    part = _Part(dataset, found.rows, drawing, (), found.n_rows)
    try_read = (lambda place: _read(part, place, draw)) if draw.skip_bad else None
    return replace(part, places=drawing.take(n, found.order, try_read) if n else ())


def _read(part: _Part, place: Place, draw: MixtureDraw) -> Sample:
    try:
        metric = draw.metric or part.rows.metric(place.row)
        sample = read_sample(part.drawing, place, metric)
    except UsageError as error:
        raise with_way_out(error, draw.skip_bad) from None
    return replace(sample, group=part.dataset.group)


def _in_turn(turns: Sequence[int], parts: Sequence[_Part]) -> Iterator[tuple[int, Place]]:
    left = [iter(part.places) for part in parts]
    for i in turns:
        place = next(left[i], None)
        if place is not None:  # a data set that has no more is left out
            yield i, place


def _source(parts: Sequence[_Part]) -> Source:
    left_out: Counter[tuple[str, str]] = Counter()
    for part in parts:
        left_out += part.drawing.left_out
    unreadable = [text for part in parts for text in part.drawing.unreadable.values()]
    n_rows = sum(part.n_rows for part in parts)
    n_questions = sum(part.drawing.n_questions(part.n_rows) or 0 for part in parts)
    return Source(n_rows, n_questions, dict(left_out), tuple(unreadable))
