"""Questions about images to measure a model on: drawn from a data set, seeded, fingerprinted."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from PIL import Image

from tpcal.calibrate.cells import (
    DEFAULT_GROUP,
    Columns,
    has_image,
    read_answer,
    read_images,
    read_question,
)
from tpcal.calibrate.seen import identity
from tpcal.calibrate.sources import Table, load_table, order
from tpcal.plans.errors import UsageError

__all__ = ["Columns", "Sample", "Samples", "load_samples"]

EMBEDDED = "embedded"
DEFAULT_N: Mapping[str, int] = {"calibration": 126, "eval": 700}
"""Samples drawn where no number is given, per split: 9 and 50 of each of the 14 built-in groups.
More than about 128 find no better plans (docs/planner.md, "What calibration has to cost")."""
LEAST_OF_GROUP = 9
"""Samples of each group, where no number is given and the data has them."""


@dataclass(frozen=True)
class Sample:
    """One question about one or more images."""

    id: str
    images: tuple[Image.Image, ...]
    """RGB."""
    question: str
    answer: str | None = None
    """None where the data has none: the model's own answer stands in."""
    group: str = DEFAULT_GROUP


class Samples(Sequence[Sample]):
    """Samples in a fixed order; those of a data set are decoded anew each time one is taken.

    Args:
        name: The data set.
        description: One line on what was drawn and how.
        rows: What ``read`` makes samples of.
        read: The sample of a row.
        recipe: Plain data from which the same samples can be loaded again.
        n_rows: Rows they were drawn from; None where there is no end of them.
    """

    def __init__(
        self,
        name: str,
        description: str,
        rows: Sequence[Any],
        read: Callable[[Any], Sample],
        recipe: Mapping[str, Any] | None = None,
        n_rows: int | None = None,
    ) -> None:
        self.name = name
        self.n_rows = n_rows
        self.description = description
        self.recipe: Mapping[str, Any] = recipe or {}
        self._rows = rows
        self._read = read
        digest = hashlib.sha256()
        groups, identities = [], []
        for sample in self:
            _feed(digest, sample)
            groups.append(sample.group)
            identities.append(identity(sample))
        self.fingerprint = f"sha256:{digest.hexdigest()}"
        """Over ids, questions, answers, groups and pixels, in order."""
        self.sample_groups: tuple[str, ...] = tuple(groups)
        """[n] the group of each sample."""
        self.groups: tuple[str, ...] = tuple(sorted(set(groups)))
        self.identities: tuple[bytes, ...] = tuple(identities)
        """[n] short digests of question and pixels: the same sample is the same in any data."""

    @classmethod
    def of(cls, samples: Iterable[Sample], name: str = "samples") -> Samples:
        """Samples that are at hand."""
        held = tuple(samples)
        return cls(name, f"{len(held)} samples given", held, lambda sample: sample)

    def part(self, start: int, stop: int) -> Samples:
        """Some of them, in order."""
        rows = self._rows[start:stop]
        return Samples(self.name, f"{len(rows)} of {self.description}", rows, self._read)

    def unanswered(self) -> Samples:
        """The same without the data's answers: the model's own stand in for every one."""
        recipe = {**self.recipe, "own_answers": True}
        description = f"{self.description}, the model's own answers"

        def read(row: Any) -> Sample:
            return replace(self._read(row), answer=None)

        return Samples(self.name, description, self._rows, read, recipe, self.n_rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        return self._read(self._rows[index])

    def __iter__(self) -> Iterator[Sample]:
        return map(self._read, self._rows)


def load_samples(
    data: str | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    split: str | None = None,
    columns: Columns | None = None,
) -> Samples:
    """Samples of a data set, or of the built-in scenes.

    Args:
        data: None or ``embedded`` for the built-in scenes; otherwise a Hub id, folder, .jsonl,
            .json, .parquet or .csv file (sources.load_table).
        n: How many; None draws `DEFAULT_N`, or `LEAST_OF_GROUP` of each group where that is more.
            Fewer come where the data has fewer. Where there are groups, each gets an equal share
            as far as it reaches.
        seed: Another seed draws other samples. The same seed always draws the same.
        split: ``calibration`` (also None) or ``eval``, or a split's own name.
        columns: Names of the columns; guessed where not given.

    Raises:
        UsageError: Missing, empty or unreadable data, missing columns, no images, a broken image.
    """
    split = split or "calibration"
    least = LEAST_OF_GROUP if n is None else 0
    n = DEFAULT_N.get(split, DEFAULT_N["eval"]) if n is None else n
    if n < 1:
        raise UsageError(f"The number of samples must be at least 1; got {n}.")
    recipe = {"data": data or EMBEDDED, "split": split, "samples": n, "seed": seed}
    if data in (None, EMBEDDED):
        return _embedded(split, n, seed, recipe)
    table = load_table(str(data), split=split, n=n, seed=seed)
    named = (columns or Columns()).resolved(table.columns, table.name)
    recipe |= {f"{k}_column": v for k, v in asdict(named).items() if v is not None}
    rows = _draw(table, named, n, least, order(len(table), split, seed))
    recipe["samples"] = max(n, len(rows))
    description = f"{len(rows)} of {len(table)} samples of {table.name} ({split}, seed {seed})"
    return Samples(
        table.name, description, rows, lambda i: _sample(table, named, i), recipe, len(table)
    )


def _embedded(split: str, n: int, seed: int, recipe: Mapping[str, Any]) -> Samples:
    from tpcal.calibrate.embedded import scenes

    try:
        made = scenes.samples(split, n, seed=seed)
    except ValueError as error:
        raise UsageError(f"The built-in scenes: {error}") from None
    held = [Sample(s.id, (s.image,), s.question, s.answer, s.group) for s in made]
    description = f"{n} built-in scenes ({split}, seed {seed})"
    return Samples(EMBEDDED, description, held, lambda sample: sample, recipe)


def _draw(table: Table, columns: Columns, n: int, least: int, drawn: Iterable[int]) -> list[int]:
    """Row numbers: the first ones in the drawn order that have an image, groups in turn.

    There are ``n`` of them, or ``least`` for each group where that is more.
    """
    by_group: dict[str, list[int]] = defaultdict(list)
    n_seen = 0
    for i in map(int, drawn):
        row = table.rows[i]
        n_seen += 1
        if has_image(row[str(columns.image)]):
            by_group[_group(row, columns)].append(i)
        if columns.group is None and len(by_group[DEFAULT_GROUP]) >= n:
            break
    turns = zip_longest(*(by_group[group] for group in sorted(by_group)))
    n = n if columns.group is None else max(n, least * len(by_group))
    rows = [i for turn in turns for i in turn if i is not None][:n]
    if not rows:
        raise UsageError(
            f"{table.name} must hold samples with images; got {n_seen} rows without any in column "
            f"{columns.image!r}. Name the right one with --image-column."
        )
    return rows


def _group(row: Mapping[str, Any], columns: Columns) -> str:
    value = row.get(columns.group) if columns.group else None
    return DEFAULT_GROUP if value is None else str(value)


def _sample(table: Table, columns: Columns, i: int) -> Sample:
    row = table.rows[i]
    where = f"{table.name} row {i + 1}"
    question, answer = read_question(row[str(columns.question)], where)
    if columns.answer is not None:
        answer = read_answer(row[columns.answer], table.labels.get(columns.answer))
    return Sample(
        id=str(row.get("id") or row.get("question_id") or i),
        images=read_images(row[str(columns.image)], table.folder, where),
        question=question,
        answer=answer,
        group=_group(row, columns),
    )


def _feed(digest: Any, sample: Sample) -> None:
    """Adds a sample to a hash; lengths keep neighbouring fields apart."""
    parts = [sample.id, sample.question, str(sample.answer), sample.group]
    for part in [*parts, *(str(image.size) for image in sample.images)]:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    for image in sample.images:
        digest.update(image.tobytes())
