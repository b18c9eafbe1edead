"""Samples: questions about images to measure a model on, drawn from a data set with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tpcal.calibrate.inputs.cells import read_answers
from tpcal.calibrate.inputs.columns import Columns
from tpcal.calibrate.inputs.images import as_rgb, read_images
from tpcal.calibrate.inputs.sample import DEFAULT_METRIC, Sample
from tpcal.calibrate.inputs.sample_digests import identity
from tpcal.calibrate.inputs.sample_size import ANSWER_TOKENS, DEFAULT_N, LEAST_OF_GROUP
from tpcal.calibrate.inputs.sampling import Drawing, Place
from tpcal.calibrate.inputs.sources import load_table
from tpcal.plans.errors import UsageError
from tpcal.plans.yaml_files import is_unicode, text_problem

__all__ = ["Columns", "Sample", "Samples", "Source", "load_samples"]

EMBEDDED = "embedded"
SCENES = "scenes"
"""Another name of the built-in scenes."""


@dataclass(frozen=True)
class Source:
    """The data that samples were drawn from."""

    n_rows: int | None = None
    """Number of rows; None if the data is unlimited or does not state it."""
    n_questions: int | None = None
    """Number of questions, those of rows that were not read estimated; None likewise."""
    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Numbers of rows or turns that are no samples, by what and why, among the rows read."""
    unreadable: tuple[str, ...] = ()
    """The error of each row that was skipped."""

    def counts(self) -> dict[str, Any]:
        """Plain data for provenance: numbers of parts left out and of rows that were skipped."""
        left_out = {f"{what} {why}": n for (what, why), n in sorted(self.left_out.items())}
        found = {"left_out": left_out, "n_unreadable": len(self.unreadable)}
        return {name: value for name, value in found.items() if value}


class _Contents(NamedTuple):
    """What is kept of samples that were read once."""

    fingerprint: str
    groups: tuple[str, ...]
    identities: tuple[bytes, ...]
    n_pixels: tuple[int, ...]


class Samples(Sequence[Sample]):
    """Samples in a fixed order; an image of a data set is decoded each time its sample is taken.

    Groups, digests and sizes of all samples are read in one pass, which decodes every image once,
    when they are first asked for. Parts of these samples take theirs over and decode nothing.

    Args:
        name: Name of the data set.
        description: One line that says what was drawn and how.
        rows: Anything that ``read`` turns into samples.
        read: Returns the sample of a row.
        recipe: Plain data from which the same samples can be loaded again.
        source: The data that the samples were drawn from.
    """

    answer_tokens: int = ANSWER_TOKENS
    """Longest answer, in tokens, unless the user names another; that of a mix is the largest of
    its data sets."""

    def __init__(
        self,
        name: str,
        description: str,
        rows: Sequence[Any],
        read: Callable[[Any], Sample],
        recipe: Mapping[str, Any] | None = None,
        source: Source | None = None,
    ) -> None:
        self.name = name
        self.source = source or Source()
        self.description = description
        self.recipe: Mapping[str, Any] = recipe or {}
        self._rows = rows
        self._read = read

    @classmethod
    def of(cls, samples: Iterable[Sample], name: str = "samples") -> Samples:
        """Samples that are given.

        Example:
            >>> from PIL import Image
            >>> from tpcal.calibrate.inputs.sample import Sample
            >>> from tpcal.calibrate.inputs.samples import Samples
            >>> sample = Sample("1", (Image.new("RGB", (8, 8)),), "Which colour?", "black")
            >>> len(Samples.of([sample]))
            1
        """
        held = tuple(samples)
        return cls(name, f"{len(held)} samples given", held, lambda sample: sample)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids, questions, answers, groups and pixels in RGB, in order."""
        return self._contents.fingerprint

    @cached_property
    def sample_groups(self) -> tuple[str, ...]:
        """[n] group of each sample."""
        return self._contents.groups

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the samples are of, sorted."""
        return tuple(sorted(set(self.sample_groups)))

    @cached_property
    def identities(self) -> tuple[bytes, ...]:
        """[n] short digests of question and pixels; equal samples of any data have equal ones."""
        return self._contents.identities

    @cached_property
    def n_pixels(self) -> tuple[int, ...]:
        """[n] pixels of the images of each sample together."""
        return self._contents.n_pixels

    @cached_property
    def _contents(self) -> _Contents:
        digest = hashlib.sha256()
        groups, identities, n_pixels = [], [], []
        for sample in self:
            _feed(digest, sample)
            groups.append(sample.group)
            identities.append(identity(sample))
            n_pixels.append(sum(image.width * image.height for image in sample.images))
        name = f"sha256:{digest.hexdigest()}"
        return _Contents(name, tuple(groups), tuple(identities), tuple(n_pixels))

    def part(self, start: int, stop: int) -> Samples:
        """The samples ``start`` … ``stop`` - 1, in order."""
        numbers = range(len(self))[start:stop]
        return self._chosen(numbers, f"{len(numbers)} of {self.description}")

    def without(self, seen: Collection[bytes]) -> Samples:
        """The samples whose identities are not in ``seen``, in order; itself if none was seen.

        Raises:
            UsageError: All samples were seen.
        """
        new = [i for i, own in enumerate(self.identities) if own not in seen]
        if len(new) == len(self):
            return self
        if not new:
            raise UsageError(
                f"Samples must be new; got {len(self)} that the plan was made from "
                f"({self.description}). Name others with --data, --split or --seed."
            )
        return self._chosen(new, f"the {len(new)} new of {self.description}")

    def _chosen(self, numbers: Sequence[int], description: str) -> Samples:
        rows = [self._rows[i] for i in numbers]
        chosen = Samples(self.name, description, rows, self._read)
        chosen.sample_groups = tuple(self.sample_groups[i] for i in numbers)
        chosen.identities = tuple(self.identities[i] for i in numbers)
        chosen.n_pixels = tuple(self.n_pixels[i] for i in numbers)
        chosen.answer_tokens = self.answer_tokens
        return chosen

    def unanswered(self) -> Samples:
        """The same samples without the data's answers; the model's own take their place."""
        recipe = {**self.recipe, "own_answers": True}
        description = f"{self.description}, the model's own answers"

        def read(row: Any) -> Sample:
            return replace(self._read(row), answer=None, answers=())

        made = Samples(self.name, description, self._rows, read, recipe, self.source)
        made.sample_groups, made.identities = self.sample_groups, self.identities
        made.n_pixels = self.n_pixels
        made.answer_tokens = self.answer_tokens
        return made

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        return self._read(self._rows[index])

    def __iter__(self) -> Iterator[Sample]:
        return map(self._read, self._rows)


@dataclass(frozen=True)
class RowSettings:
    """How the rows of a data set become samples."""

    skip_bad: bool = False
    """Whether to take further rows in place of those that cannot be read. Their errors are in
    ``source.unreadable``."""
    metric: str | None = None
    """Metric of the answers; None takes that of a data set by name, or ``match``."""


def load_samples(
    data: str | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    split: str | None = None,
    columns: Columns | None = None,
    rows: RowSettings | None = None,
) -> Samples:
    """Samples of a data set, of a mix of data sets by name, or of the built-in scenes.

    Args:
        data: None, ``scenes`` or ``embedded`` for the built-in scenes; names of the catalog
            (datasets.mixture); otherwise a Hub id, folder, .jsonl, .json, .parquet or .csv file
            (sources.load_table).
        n: Number of samples; None draws `DEFAULT_N`, or `LEAST_OF_GROUP` of each group if that is
            more. There are fewer samples if the data has fewer. Groups, if there are any, get
            equal shares as far as each has samples.
        seed: Seed of the random order. The same seed always draws the same samples.
        split: ``calibration`` (also None) or ``eval``, or a split's own name.
        columns: Names of the columns; those that are not given are guessed.
        rows: How rows become samples; None for the defaults of `RowSettings`.

    Raises:
        UsageError: Missing, empty or unreadable data, missing columns, no images; a row that
            cannot be read, or none that can.
    """
    split, rows = split or "calibration", rows or RowSettings()
    metric, skip_bad = rows.metric, rows.skip_bad
    if n is not None and n < 1:
        raise UsageError(f"The number of samples must be at least 1; got {n}.")
    is_local = data is not None and Path(data).expanduser().exists()
    data = None if data == EMBEDDED or (data == SCENES and not is_local) else data
    if data is not None and not is_local:
        from tpcal.calibrate.inputs.datasets.mixture import is_mixture

        if is_mixture(data):
            from tpcal.calibrate.inputs.datasets.load_mixture import MixtureDraw, load_mixture

            _refuse_columns(data, columns)
            return load_mixture(data, MixtureDraw(n, seed, split, metric, skip_bad))
    least = LEAST_OF_GROUP if n is None else 0
    n = DEFAULT_N.get(split, DEFAULT_N["eval"]) if n is None else n
    recipe = {"data": data or EMBEDDED, "split": split, "samples": n, "seed": seed}
    recipe |= {"metric": metric} if metric else {}
    if data is None:
        return _embedded(split, n, seed, recipe)
    table = load_table(str(data), split=split, seed=seed)
    named = (columns or Columns()).resolved(table.columns, table.rows[0], table.name)
    recipe |= {f"{k}_column": v for k, v in asdict(named).items() if v is not None}
    drawing = Drawing(table, named)

    def read(place: Place) -> Sample:
        try:
            return read_sample(drawing, place, metric or DEFAULT_METRIC)
        except UsageError as error:
            raise with_way_out(error, skip_bad) from None

    places = drawing.take(n, table.order(split, seed), read if skip_bad else None, least)
    recipe["samples"] = max(n, len(places))
    n_questions = drawing.n_questions(table.n_rows)
    source = Source(
        table.n_rows, n_questions, dict(drawing.left_out), tuple(drawing.unreadable.values())
    )
    of = "" if table.n_rows is None else f" of {table.n_rows}"
    description = f"{len(places)}{of} samples of {table.name} ({split}, seed {seed})"
    if any(place.question for place in places):
        n_rows = len({place.row for place in places})
        description = (
            f"{len(places)} questions of {n_rows}{of} conversations of {table.name} "
            f"({split}, seed {seed})"
        )
    drawn = Samples(table.name, description, places, read, recipe, source)
    _ = drawn.fingerprint  # reads every sample, so that one that cannot be read ends this call
    return drawn


def _refuse_columns(data: str, columns: Columns | None) -> None:
    """Raises UsageError if a column is named for data sets by name."""
    given = [name for name, column in asdict(columns or Columns()).items() if column is not None]
    if given:
        raise UsageError(
            f"--{given[0]}-column must be left out for {data}, whose columns are known; got "
            f"{asdict(columns or Columns())[given[0]]}."
        )


def _embedded(split: str, n: int, seed: int, recipe: Mapping[str, Any]) -> Samples:
    from tpcal.calibrate.embedded import scenes

    try:
        made = scenes.samples(split, n, seed=seed)
    except ValueError as error:
        raise UsageError(f"The built-in scenes: {error}") from None
    metric = str(recipe.get("metric", DEFAULT_METRIC))
    held = [Sample(s.id, (s.image,), s.question, s.answer, s.group, metric=metric) for s in made]
    description = f"{n} built-in scenes ({split}, seed {seed})"
    return Samples(EMBEDDED, description, held, lambda sample: sample, recipe)


def with_way_out(error: UsageError, skip_bad: bool) -> UsageError:
    """The error of a row, with the option that goes on without such rows unless it is given."""
    return error if skip_bad else UsageError(f"{error} Add --skip-bad to go on without such rows.")


def read_sample(drawing: Drawing, place: Place, metric: str) -> Sample:
    """The sample at a place, its images decoded.

    Raises:
        UsageError: The row cannot be read.
    """
    row, table = drawing.table.rows[place.row], drawing.table
    where = drawing.where(place.row)
    asked = drawing.questions(row, where)[place.question]
    images = read_images(asked.images, table.folder, where)
    if len(images) != len(asked.images):
        raise UsageError(
            f"{where}: every place for an image must have one; got {len(images)} for "
            f"{len(asked.images)}."
        )
    own = str(row.get("id") or row.get("question_id") or place.row)
    sample = Sample(
        id=f"{own}#{place.question}" if place.question else own,
        images=images,
        question=asked.question,
        answer=asked.answer,
        group=drawing.group(row),
        turns=asked.turns,
        answers=() if metric == DEFAULT_METRIC else _answers(drawing, row, asked.answer),
        metric=metric,
    )
    texts = [sample.id, sample.question, sample.group, *sample.answers, sample.answer or ""]
    for text in [*texts, *(turn.text for turn in sample.turns)]:
        if not is_unicode(text):
            raise UsageError(
                f"{where}: text must be Unicode; got half a character in {text!a:.60}."
            )
    if problem := text_problem(sample.group):  # profiles and plans name it
        raise UsageError(f"{where}: a group must {problem}; got {sample.group!a:.60}.")
    return sample


def _answers(drawing: Drawing, row: Mapping[str, Any], answer: str | None) -> tuple[str, ...]:
    """All right answers of a row; the answer alone if the cell has it in another form."""
    if answer is None:
        return ()
    column = drawing.columns.answer or ""
    found = read_answers(row.get(column), drawing.table.labels.get(column))
    return found if answer in found else (answer,)


def _feed(digest: Any, sample: Sample) -> None:
    """Adds a sample to a hash; lengths keep neighbouring fields apart."""
    parts = [sample.id, sample.question, str(sample.answer), sample.group]
    parts += [repr(turn) for turn in sample.turns]
    for part in [*parts, *(str(image.size) for image in sample.images)]:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    for image in sample.images:
        digest.update(as_rgb(image).tobytes())
