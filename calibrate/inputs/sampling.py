"""Sampling of questions from a table: those with an image, in random order, groups in turn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice, zip_longest
from typing import Any, NamedTuple

from tpcal.calibrate.inputs.cells import text_of
from tpcal.calibrate.inputs.columns import DEFAULT_GROUP, Columns
from tpcal.calibrate.inputs.rows import Asked, read_row
from tpcal.calibrate.inputs.sources import RawTable
from tpcal.calibrate.inputs.streams import AT_ONCE, StreamedRows
from tpcal.plans.errors import UsageError


class Place(NamedTuple):
    """The position of a question in a table."""

    row: int
    """Number of the row, from 0."""
    question: int
    """Number among the questions of the row, from 0."""


class Drawing:
    """Draws questions from a table without decoding an image.

    Args:
        table: The table.
        columns: Its columns, all resolved.
    """

    def __init__(self, table: RawTable, columns: Columns) -> None:
        self.table = table
        self.columns = columns
        self.left_out: Counter[tuple[str, str]] = Counter()
        """Numbers of rows or turns that are no questions, by what they are and why."""
        self.unreadable: dict[int, str] = {}
        """Errors of rows that were skipped, by row number."""
        self._n_seen = 0
        self._n_asked = 0
        self._n_groups = 0

    def take(
        self,
        n: int,
        order: Iterable[int],
        try_read: Callable[[Place], Any] | None = None,
        least: int = 0,
    ) -> list[Place]:
        """The first ``n`` places, or ``least`` for each group if that is more.

        Args:
            n: Number of places to take; the table may have fewer.
            order: Row numbers, in the order to take them.
            try_read: Reads a place completely. A row that it cannot read is skipped; None skips
                no rows.
            least: Number of places for each group, if there is a column of groups.

        Raises:
            UsageError: The table holds no questions with images, or none that can be read.
        """
        # Rows come in random order and groups in turn, so any prefix of the places has nearly
        # equal shares of all groups, as far as they reach. The size is known only after
        # `_in_turn` has seen all groups: max(n, least * number of groups).
        taken: list[Place] = []
        for place in self._in_turn(order):
            if try_read is None or self._can(try_read, place):
                taken.append(place)
            if len(taken) >= max(n, least * self._n_groups):
                break
        if not taken:
            raise UsageError(self._why_none())
        return taken

    def n_questions(self, n_rows: int | None) -> int | None:
        """Number of questions in a table of ``n_rows`` rows; None if that is None.

        Rows that were not read are taken to have as many questions as those that were.
        """
        if n_rows is None or not self._n_seen:
            return n_rows
        return round(n_rows * self._n_asked / self._n_seen)

    def questions(self, row: Mapping[str, Any], where: str) -> list[Asked]:
        """The questions of a row.

        Raises:
            UsageError: The row has no question, or its form cannot be understood.
        """
        labels = self.table.labels.get(self.columns.answer or "")
        return read_row(row, self.columns, labels, where)[0]

    def where(self, row: int) -> str:
        """The name of a row in error messages; rows are counted from 1."""
        return f"{self.table.name} row {row + 1}"

    def group(self, row: Mapping[str, Any]) -> str:
        """The group of a row; `DEFAULT_GROUP` if it has none."""
        value = row.get(self.columns.group) if self.columns.group else None
        names = self.table.labels.get(self.columns.group or "", ())
        if type(value) is int and 0 <= value < len(names):  # a class number
            return names[value]
        return (value if isinstance(value, str) else text_of(value)) or DEFAULT_GROUP

    def _in_turn(self, order: Iterable[int]) -> Iterator[Place]:
        # Without groups, rows are read only as far as they are needed. With groups, all rows are
        # read once to collect each group's places, or those of a stream some at a time; then
        # every turn takes one place of each group, in the order of their names, and a group that
        # is used up is left out.
        places, groups = self._places(order), set[str]()
        if self.columns.group is None:
            yield from (place for _, place in places)
            return
        at_once = AT_ONCE if isinstance(self.table.rows, StreamedRows) else None
        while some := list(islice(places, at_once)):
            by_group: dict[str, list[Place]] = defaultdict(list)
            for group, place in some:
                by_group[group].append(place)
            groups |= by_group.keys()
            self._n_groups = len(groups)
            for turn in zip_longest(*(by_group[group] for group in sorted(by_group))):
                yield from (place for place in turn if place is not None)

    def _places(self, order: Iterable[int]) -> Iterator[tuple[str, Place]]:
        labels = self.table.labels.get(self.columns.answer or "")
        for i in map(int, order):
            self._n_seen += 1
            group, n_asked = DEFAULT_GROUP, 1
            with suppress(UsageError):  # reading this place raises the error again
                row = self.table.rows[i]
                group = self.group(row)
                asked, left_out = read_row(row, self.columns, labels, self.where(i))
                n_asked = len(asked)
                self.left_out += left_out
            self._n_asked += n_asked
            yield from ((group, Place(i, question)) for question in range(n_asked))

    def _can(self, read: Callable[[Place], Any], place: Place) -> bool:
        if place.row not in self.unreadable:
            try:
                read(place)
            except UsageError as error:
                self.unreadable[place.row] = str(error)
        return place.row not in self.unreadable

    def _why_none(self) -> str:
        if self.unreadable:
            first = next(iter(self.unreadable.values()))
            return (
                f"{self.table.name} must hold samples that can be read; got {self._n_seen} rows "
                f"without any. The first: {first}"
            )
        column = f"column {self.columns.image!r}" if self.columns.image else "their conversations"
        return (
            f"{self.table.name} must hold samples with images; got {self._n_seen} rows without "
            f"any in {column}. Name the right one with --image-column."
        )
