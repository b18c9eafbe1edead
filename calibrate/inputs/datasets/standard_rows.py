"""The rows of a named data set in one form: image, question, choices and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from PIL import Image, ImageDraw

from tpcal.calibrate.inputs.cells import text_of
from tpcal.calibrate.inputs.columns import Columns
from tpcal.calibrate.inputs.datasets.catalog import NamedDataset
from tpcal.calibrate.inputs.images import converted_images
from tpcal.calibrate.inputs.multiple_choice import asked
from tpcal.calibrate.inputs.text_files import Row
from tpcal.plans.errors import UsageError, excerpt

IMAGE, QUESTION, CHOICES, ANSWER = "image", "question", "choices", "answer"
_MISSING = frozenset(("", "nan"))
"""Texts of cells that hold nothing; MMBench writes nan."""


class StandardRows(Sequence[Row]):
    """Rows that are brought into the common form when they are taken.

    Args:
        dataset: What the columns mean.
        rows: The rows as the data set has them, images encoded.
        images: Images by name, if the rows only name theirs.
    """

    def __init__(
        self, dataset: NamedDataset, rows: Sequence[Row], images: Mapping[str, Any] | None = None
    ) -> None:
        self._dataset, self._rows, self._images = dataset, rows, images

    @property
    def columns(self) -> Columns:
        """The columns of the common form that the data set has."""
        choices = CHOICES if self._dataset.choices else None
        return Columns(image=IMAGE, question=QUESTION, answer=ANSWER, choices=choices)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        dataset, row = self._dataset, self._rows[index]
        where = f"{dataset.name} row {index + 1}"
        found = {
            "id": f"{dataset.name}-{index}",
            IMAGE: self._images_of(row, where),
            QUESTION: _question(dataset, row),
            ANSWER: _answer(dataset, row, where),
        }
        return {**found, CHOICES: _choices(dataset, row)} if dataset.choices else found

    def metric(self, index: int) -> str:
        """The metric of a row's answers."""
        row, own = self._rows[index], self._dataset.metrics
        found = (metrics.get(text_of(row[column])) for column, metrics in own.items())
        return next(filter(None, found), self._dataset.metric)

    def _images_of(self, row: Row, where: str) -> list[Image.Image]:
        cell = row[self._dataset.image]
        if self._images is not None:
            name = text_of(cell)
            if name not in self._images:
                raise UsageError(f"{where}: there must be an image called {excerpt(name)}.")
            cell = self._images[name]
        images = converted_images(cell, where)
        if self._dataset.box is not None:
            # The region is marked as lmms-eval does it: by a red line of one pixel.
            x, y, width, height = row[self._dataset.box]
            for image in images:
                ImageDraw.Draw(image).rectangle((x, y, x + width, y + height), outline="red")
        return images


def _question(dataset: NamedDataset, row: Row) -> str:
    text = dataset.ask or _text(row, dataset.question)
    if dataset.remove:
        text = text.replace(dataset.remove, "").strip()
    if dataset.capitalise:
        text = text.capitalize()
    context = _text(row, dataset.context)
    if context:
        text = dataset.context_text.replace("{}", context) + text
    choices = _choices(dataset, row) if dataset.instruction else []
    return asked(text + dataset.suffix, choices, dataset.instruction)


def _choices(dataset: NamedDataset, row: Row) -> list[str]:
    first = row[dataset.choices[0]]
    if len(dataset.choices) == 1:
        return list(first)
    texts = [_text(row, column) for column in dataset.choices]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _answer(dataset: NamedDataset, row: Row, where: str) -> Any:
    cell = row[dataset.answer]
    if dataset.answers == "index":
        text = text_of(cell)
        if not text.isdecimal():
            raise UsageError(f"{where}: the answer must be a number; got {excerpt(cell)}.")
        return int(text)
    if dataset.answers == "letter":
        # As a number, because a letter may also be the text of another choice.
        letter = text_of(cell).upper()
        if len(letter) != 1 or letter not in ascii_uppercase:
            raise UsageError(f"{where}: the answer must be a letter; got {excerpt(cell)}.")
        return ascii_uppercase.index(letter)
    return cell


def _text(row: Row, column: str | None) -> str:
    text = "" if column is None else text_of(row[column])
    return "" if text in _MISSING else text
