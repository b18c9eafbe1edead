"""What stands in the cells of a data set as text, and answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Any

import numpy as np


def read_answer(cell: Any, labels: Sequence[str] | None = None) -> str | None:
    """The answer of a cell: of several the most common, the first among equals; None without one.

    Args:
        cell: Text, a number, a class number, or a list of those or of ``{"answer": …}``.
        labels: Class names, where the cell holds a class number.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("answer", cell.get("text"))
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        read = [answer for item in cell if (answer := read_answer(item, labels)) is not None]
        return Counter(read).most_common(1)[0][0] if read else None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if labels is not None and isinstance(cell, int):
        return labels[cell] if 0 <= cell < len(labels) else None
    return text_of(cell) or None


def text_of(cell: Any) -> str:
    """A cell as text, empty where it is missing.

    A column of whole numbers becomes one of fractions as soon as a cell is missing, and a day
    becomes a time; so whole numbers have no fraction, and midnights no hour.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and abs(cell) < 1e15:
        if cell.is_integer():
            return str(int(cell))
        short = np.float32(cell)  # of a column in single precision: 0.1, not 0.10000000149
        return str(short if float(short) == cell else cell)
    if isinstance(cell, datetime) and cell.time() == time():
        return str(cell.date())
    return str(cell).strip()
