"""The images of one row of a data set."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
