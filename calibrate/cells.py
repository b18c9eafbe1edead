"""What stands in the cells of a data set: which columns there are, images and answers."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tpcal.plans.errors import UsageError


def has_image(cell: Any) -> bool:
    """Whether an image cell holds anything."""
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes):
        return any(has_image(item) for item in cell)
    if isinstance(cell, Mapping):
        return bool(cell.get("bytes") or cell.get("path"))
    return cell is not None and cell != "" and cell != b""


def read_images(cell: Any, folder: Path | None, row: str) -> tuple[Image.Image, ...]:
    """The RGB images of a cell: a path, encoded bytes, an image, `datasets`' pair, or a list.

    Args:
        cell: The cell.
        folder: Where relative paths start.
        row: Names the row in errors.

    Raises:
        UsageError: An image is missing or cannot be decoded.
    """
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes):
        return tuple(image for item in cell for image in read_images(item, folder, row))
    return (_read_image(cell, folder, row),) if has_image(cell) else ()


def _read_image(cell: Any, folder: Path | None, row: str) -> Image.Image:
    shown = "an image"
    try:
        if isinstance(cell, Mapping):
            cell = cell["bytes"] if cell.get("bytes") else cell["path"]
        if isinstance(cell, str):
            shown = cell
            path = Path(cell).expanduser()
            cell = (folder / path if folder else path).read_bytes()
        if isinstance(cell, bytes):
            cell = Image.open(io.BytesIO(cell))
        if not isinstance(cell, Image.Image):
            raise UsageError(f"{row}: the image must be a path or an image; got {cell!r:.60}.")
        return ImageOps.exif_transpose(cell).convert("RGB")
    except FileNotFoundError:
        start = f"the folder {folder}" if folder and str(folder) != "." else "this folder"
        raise UsageError(f"{row}: no image at {shown}. Paths start at {start}.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{row}: {shown} must be an image; got something else.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{row}: {shown} cannot be read as an image: {reason}.") from None


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
