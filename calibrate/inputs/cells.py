"""Cells of a data set, read as text and as answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

from tpcal.plans.errors import UsageError, listed

_KEYS = ("answer", "text", "value")
"""Keys of a mapping that hold its answer."""
_SINGLE = 9
"""Significant digits that tell every number in single precision from its neighbours."""


def read_answer(cell: Any, labels: Sequence[str] | None = None) -> str | None:
    """The answer of a cell, or None if it has none.

    Of several answers, the most common one counts, or the first of those that are equally common.

    Args:
        cell: Text, a number, a class number, a mapping with one of those as ``answer``, ``text``
            or ``value``, or a list of all these.
        labels: Class names, if the cell holds a class number.

    Raises:
        UsageError: A mapping has other keys.

    Example:
        >>> from tpcal.calibrate.inputs.cells import read_answer
        >>> read_answer(["cat", "dog", "dog"]), read_answer(True), read_answer(1, ["no", "maybe"])
        ('dog', 'yes', 'maybe')
    """
    cell = _held(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        read = [answer for item in cell if (answer := read_answer(item, labels)) is not None]
        return Counter(read).most_common(1)[0][0] if read else None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if labels is not None and isinstance(cell, int):
        return labels[cell] if 0 <= cell < len(labels) else None
    return text_of(cell) or None


def read_answers(cell: Any, labels: Sequence[str] | None = None) -> tuple[str, ...]:
    """All answers of a cell, in order; arguments as of `read_answer`.

    Example:
        >>> from tpcal.calibrate.inputs.cells import read_answers
        >>> read_answers(["cat", None, {"answer": "dog"}]), read_answers(True)
        (('cat', 'dog'), ('yes',))
    """
    cell = _held(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return tuple(answer for item in cell for answer in read_answers(item, labels))
    answer = read_answer(cell, labels)
    return () if answer is None else (answer,)


def _held(cell: Any) -> Any:
    """The answer, or the list of answers, that a mapping holds; another cell itself."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    if not isinstance(cell, Mapping):
        return cell
    if cell and not any(key in cell for key in _KEYS):
        raise UsageError(
            f"an answer must be text, a number, a list or a mapping with {', '.join(_KEYS)}; got "
            f"one with {listed(list(cell))}. Name another column with --answer-column."
        )
    return next((cell[key] for key in _KEYS if cell.get(key) is not None), None)


def text_of(cell: Any) -> str:
    """A cell as text; empty if the cell is missing.

    Readers of tables turn a column of whole numbers into one of fractions if a cell is missing,
    and a day into a time. So whole numbers are written without a fraction, and midnights without
    the hour.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and abs(cell) < 1e15:
        if cell.is_integer():
            return str(int(cell))
        # A column in single precision: 0.1, not 0.10000000149.
        single = float(np.float32(cell)) == cell and _n_digits(cell) > _SINGLE
        return np.format_float_positional(np.float32(cell)) if single else str(cell)
    if isinstance(cell, datetime) and cell.time() == time():
        return str(cell.date())
    return str(cell).strip()


def _n_digits(number: float) -> int:
    """Number of significant digits of the shortest decimal that is this number."""
    return len(Decimal(repr(number)).as_tuple().digits)
