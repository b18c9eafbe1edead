"""Data sets that are streamed: rows in a random order, fetched only as far as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from tpcal.calibrate.inputs.data_errors import explained
from tpcal.calibrate.inputs.text_files import Row

SHUFFLED = 1_000
"""Number of rows among which the next one is drawn. A data set of no more rows is read whole."""
BLOCK = 50
"""Number of neighbouring rows that serve the same role."""
AT_ONCE = 250
"""Number of questions that are fetched together, if their groups take turns."""


class StreamedRows(Sequence[Row]):
    """Rows that are fetched when they are first asked for; ``len`` counts those fetched so far.

    Args:
        name: Name of the data set, for error messages.
        stream: The rows, from `datasets`.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self._name, self._fetched = name, list[Row]()
        self._stream: Iterator[Row] = iter(stream)

    def __len__(self) -> int:
        return len(self._fetched)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        while index >= len(self._fetched):
            with explained(self._name):
                row = next(self._stream, None)
            if row is None:
                raise IndexError(index)
            self._fetched.append(row)
        return self._fetched[index]

    def numbers(self) -> Iterator[int]:
        """The number of every row, in order, once it is fetched.

        When it ends or is not used any more, the stream is closed.
        """
        try:
            for number in count():
                try:
                    _ = self[number]
                except IndexError:
                    return
                yield number
        finally:
            self._stream = iter(())  # closes files and connections


def in_random_order(name: str, stream: Any, seed: int, part: int | None) -> StreamedRows:
    """The rows of a stream in a random order, of which a longer draw begins with a shorter one.

    Args:
        name: Name of the data set, for error messages.
        stream: The rows, from `datasets`.
        seed: Seed of the order.
        part: 0 or 1 gives every other block of rows; None gives all of them.
    """
    # Blocks serve calibration and evaluation in turn. Neighbouring rows often ask about the same
    # image, so that single rows in turn would share images.
    if part is not None:
        stream = stream.filter(lambda _, at: (at // BLOCK) % 2 == part, with_indices=True)
    return StreamedRows(name, stream.shuffle(seed=seed, buffer_size=SHUFFLED))
