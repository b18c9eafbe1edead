"""Rows of text files (.jsonl, .json and .csv), with every cell as it is written.

Readers that guess types turn ``007`` into 7, ``3`` in a column with an empty cell into 3.0,
``None`` into a missing cell and ``2024-05-01`` into a time. Answers are compared as text, so no
types are guessed here.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpcal.plans.errors import UsageError, listed

Row = Mapping[str, Any]
Rows = tuple[Sequence[Row], tuple[str, ...]]
LARGEST_CELL = 2**31 - 1
"""Largest cell, in characters; the default of `csv` is too small for an image in base64."""


def read_rows(path: Path) -> Rows:
    """The rows of a file, and the names of all its columns; a row may lack columns.

    JSON numbers with a fraction are kept as text, as they are written. Cells of CSV are text, and
    only an empty cell is missing.

    Raises:
        UsageError: The file cannot be read, or is no table.

    Example:
        >>> rows, columns = read_rows(Path("questions.jsonl"))  # doctest: +SKIP
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    try:
        return readers[path.suffix.lower()](path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(f"{path} cannot be read: {reason.rstrip('.')}.") from None


class _Lines(Sequence[Row]):
    """Rows of a file of JSON lines; a row is parsed each time it is taken."""

    def __init__(self, path: Path, starts: Sequence[int]) -> None:
        self._path, self._starts = path, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            row: Row = _parse(file.readline())
            return row


def _json_lines(path: Path) -> Rows:
    # One pass checks every line and notes where it starts, 8 bytes a row. The rows themselves,
    # which may hold images in base64, stay in the file.
    starts = array("q")
    columns: dict[str, None] = {}
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                columns |= dict.fromkeys(_object(line, path, number))
                starts.append(at)
            at += len(line)
    return _Lines(path, starts), tuple(columns)


def _object(line: bytes, path: Path, number: int) -> Row:
    try:
        row = _parse(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{path} line {number} must be a JSON object.")
    return row


def _json(path: Path) -> Rows:
    """The rows of a list of objects, of one object, or of JSON lines in a .json file."""
    try:
        rows = _parse(path.read_bytes())
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return _json_lines(path)
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} must hold a list of JSON objects.")
    return rows, tuple(dict.fromkeys(name for row in rows for name in row))


def _parse(text: bytes) -> Any:
    return json.loads(text, parse_float=str, parse_constant=lambda _: None)


def _csv(path: Path) -> Rows:
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            if len(set(columns)) < len(columns):
                raise UsageError(f"{path} must name every column once; got {listed(columns)}.")
            rows = []
            for row in reader:
                if None in row:
                    raise UsageError(
                        f"{path} line {reader.line_num} must have {len(columns)} cells, as the "
                        "first line has; got more. Put cells that hold a comma in quotes."
                    )
                rows.append(row)
            return rows, columns
    finally:
        csv.field_size_limit(limit)
