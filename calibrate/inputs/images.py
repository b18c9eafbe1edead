"""The images of one row of a data set, as they were opened, and as a model sees them.

The reference is ``processor(images=Image.open(file))``: an image keeps its mode and its rows until
the model's own image processor gets it. Code that needs pixels for another purpose, such as
telling samples apart, drawing or scaling, takes them from `as_rgb`, which converts as processors
do.
"""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tpcal.plans.errors import UsageError, excerpt

_KEYS = ("bytes", "image", "image_url", "url", "base64", "source", "data", "path")
"""Keys under which mappings hold an image: those of `datasets`, and of parts of chat messages of
transformers, OpenAI and Anthropic. The first key with a value counts."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|file:", re.IGNORECASE)
_WIDE = re.compile(r"I|F|I;16.*")
"""Pillow's modes with more than 8 bits per channel."""
_TURNED = (
    "Some images are stored turned, with their orientation in EXIF. The model is shown them as "
    "stored, as processor(images=Image.open(file)) shows them; chat messages with paths turn them "
    "upright. docs/images.md says how to measure the latter."
)


def has_image(cell: Any) -> bool:
    """Whether an image cell holds an image, or a list with one."""
    cell = _inside(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes | bytearray):
        return any(has_image(item) for item in cell)
    return cell is not None and cell != "" and cell != b""


def read_images(cell: Any, folder: Path | None, row: str) -> tuple[Image.Image, ...]:
    """The images of a cell, with mode and EXIF as they were opened.

    Args:
        cell: A path, a data URI, base64 text, encoded bytes, an image, a mapping with one of these
            (`datasets`' ``{"bytes", "path"}``, an ``image`` or ``image_url`` part of a chat
            message), or a list of those.
        folder: Folder of relative paths.
        row: Name of the row, for error messages.

    Raises:
        UsageError: An image is missing, is a URL, cannot be decoded, or has more than 8 bits per
            channel.
    """
    images = tuple(_opened(cell, folder, row))
    if any(map(_is_turned, images)):
        warnings.warn(_TURNED, stacklevel=2)
    return images


def converted_images(cell: Any, row: str) -> list[Image.Image]:
    """The images of a cell as the tasks of lmms-eval show them to a model: upright and in RGB.

    Transparency is dropped, so that the colour below a transparent pixel is seen. The images are
    copies. Takes the arguments and raises the errors of `read_images`.
    """
    images = [upright(image) for image in _opened(cell, None, row)]
    # Pillow warns of some palettes unless they become RGBA first.
    return [(i.convert("RGBA") if i.mode == "P" else i.copy()).convert("RGB") for i in images]


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, transparency over white, converted as transformers' processors do it."""
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    from tpcal.plans.executor.compat import converted_to_rgb

    return converted_to_rgb(image)


def for_processor(processor: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images to pass to a processor: as opened, if it takes them so.

    An image processor that does not convert images accepts three channels only; images with
    another number of channels are converted to RGB for it.
    """
    converts = getattr(getattr(processor, "image_processor", None), "do_convert_rgb", True)
    return [image if converts or len(image.getbands()) == 3 else as_rgb(image) for image in images]


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unchanged if EXIF cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken tag may raise any error in Pillow; processors do not read EXIF
        return image


def _opened(cell: Any, folder: Path | None, row: str) -> Iterator[Image.Image]:
    cell = _inside(cell)
    if isinstance(cell, Sequence) and not isinstance(cell, str | bytes | bytearray):
        for item in cell:
            yield from _opened(item, folder, row)
    elif has_image(cell):
        yield _read_image(cell, folder, row)


def _inside(cell: Any) -> Any:
    """The image that a mapping holds, through any number of mappings; None if there is none."""
    while isinstance(cell, Mapping):
        cell = next((cell[key] for key in _KEYS if cell.get(key)), None)
    return cell


def _read_image(cell: Any, folder: Path | None, row: str) -> Image.Image:
    # Text becomes encoded bytes, bytes become an image, and the image is decoded here, so that
    # every fault of a file is reported with the row that names it.
    shown = "the data"
    try:
        if isinstance(cell, str):
            shown = excerpt(cell)
            cell = _encoded(cell, folder, row)
        if isinstance(cell, bytes | bytearray):
            cell = Image.open(io.BytesIO(cell))
        if not isinstance(cell, Image.Image):
            raise UsageError(f"{row}: the image must be a path or an image; got {excerpt(cell)}.")
        _check(cell, shown, row)
    except UsageError:
        raise
    except FileNotFoundError:
        start = f"the folder {folder}" if folder and str(folder) != "." else "this folder"
        raise UsageError(f"{row}: no image at {shown}. Paths start at {start}.") from None
    except UnidentifiedImageError:
        raise UsageError(f"{row}: {shown} must be an image; got something else.") from None
    except Exception as error:  # decoders raise various errors, that of AVIF a RuntimeError
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(
            f"{row}: {shown} cannot be read as an image: {excerpt(reason)}."
        ) from None
    return cell


def _check(image: Image.Image, shown: str, row: str) -> None:
    """Decodes the image, and refuses one that a model's processor would distort."""
    image.load()
    if _WIDE.fullmatch(image.mode):
        raise UsageError(
            f"{row}: {shown} must have 8 bits per channel; got Pillow's mode {image.mode}, of "
            "which image processors make mere black and white. Scale it to 8 bits as your "
            "production does, save a copy, and give that."
        )
    as_rgb(image)


def _encoded(text: str, folder: Path | None, row: str) -> bytes:
    """The bytes of the file that a cell names, or holds as a data URI or base64.

    Raises:
        FileNotFoundError: The text is none of these.
    """
    if _URL.match(text):
        raise UsageError(f"{row}: {_no_url(text)}")
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        return _decoded(body) if head.endswith(";base64") else unquote_to_bytes(body)
    path = os.path.join(folder or "", os.path.expanduser(text))
    if os.path.isfile(path):
        return Path(path).read_bytes()
    if os.path.exists(path):
        raise OSError("it is not a file")
    try:
        data = _decoded(text)
        Image.open(io.BytesIO(data))
    except (ValueError, UnidentifiedImageError):
        raise FileNotFoundError from None
    return data


def _decoded(text: str) -> bytes:
    """The bytes of base64 text, in one line or several, padded or not.

    Raises:
        ValueError: The text is not base64.
    """
    whole = "".join(text.split())
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % 4), validate=True)
    except Base64Error:
        raise ValueError("it is not base64") from None


def _no_url(text: str) -> str:
    """Why a URL is refused and what to do. Its password and query, which may be secret, are left
    out."""
    try:
        url = urlsplit(text)
        shown = excerpt(f"{url.scheme}://{url.hostname or ''}{url.path}")
    except ValueError:
        shown = "a URL"
    if shown.startswith("file:"):
        return f"{shown} is a URL; give the path alone, without file://."
    return (
        f"{shown} is a URL, and URLs are not fetched. Save a copy on disk, for example with "
        "curl -O URL, and give its path."
    )


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # as in `upright`
        return False
