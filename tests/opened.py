"""Files of one picture in every mode that Pillow opens them in."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import PIL
from PIL import Image, ImageCms

HEIGHT, WIDTH = 20, 28


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file of the image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours() -> Image.Image:
    """A picture that no mirroring or turning leaves as it is."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    shades = np.stack([rows * 12, columns * 9, (rows + columns) * 5], axis=-1)
    return Image.fromarray(shades.astype(np.uint8))


def drawing() -> Image.Image:
    """The same as black lines that only opacity tells from the transparent ground."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    shades = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    shades[..., 3] = np.where((rows + 2 * columns) % 7 < 2, 255, columns * 3)
    return Image.fromarray(shades)


def turned(orientation: int = 6) -> bytes:
    """A photograph stored lying."""
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(colours(), "jpeg", exif=exif)


def wide(mode: str) -> bytes:
    """Of more than 8 bits per channel."""
    shades = np.asarray(colours().convert("L"), np.float32)
    values: Mapping[str, np.ndarray] = {
        "I;16": (shades * 256).astype(np.uint16),
        "I": (shades * 300).astype(np.int32),
        "F": shades / 255,
    }
    return saved(Image.fromarray(values[mode]), "tiff")


def _palette(**options: object) -> bytes:
    return saved(colours().quantize(16), "png", **options)


def _lab() -> bytes:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(colours(), to_lab)
    assert lab is not None
    return saved(lab, "tiff")


def _ycbcr() -> bytes | Image.Image:
    image = colours().convert("YCbCr")
    try:
        in_pillow(saved(image, "tiff")).load()
    except OSError:  # Pillow before 13 writes too few bytes
        assert int(PIL.__version__.partition(".")[0]) < 13
        return image
    return saved(image, "tiff")


def in_pillow(data: bytes | Image.Image) -> Image.Image:
    """What a user's own code has of it."""
    return Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data


FILES: Mapping[str, Callable[[], bytes | Image.Image]] = {
    "1": lambda: saved(colours().convert("1"), "png"),
    "L": lambda: saved(colours().convert("L"), "png"),
    "L tRNS": lambda: saved(colours().convert("L"), "png", transparency=24),
    "LA": lambda: saved(drawing().convert("LA"), "png"),
    "P": _palette,
    "P tRNS": lambda: _palette(transparency=3),
    "P tRNS of each": lambda: _palette(transparency=bytes(range(0, 256, 16))),
    "P gif": lambda: saved(colours().quantize(16), "gif", transparency=2),
    "PA": lambda: saved(drawing().convert("PA"), "tiff"),
    "RGB": lambda: saved(colours(), "png"),
    "RGB tRNS": lambda: saved(colours(), "png", transparency=(12, 9, 10)),
    "RGB jpeg": lambda: saved(colours(), "jpeg"),
    "RGB turned": turned,
    "RGBA": lambda: saved(drawing(), "png"),
    "RGBA webp": lambda: saved(drawing(), "webp", lossless=True),
    "CMYK": lambda: saved(colours().convert("CMYK"), "jpeg"),
    "CMYK tiff": lambda: saved(colours().convert("CMYK"), "tiff"),
    "YCbCr": _ycbcr,
    "LAB": _lab,
    "HSV": lambda: colours().convert("HSV"),
    "RGBX": lambda: colours().convert("RGBX"),
    "RGBa": lambda: drawing().convert("RGBa"),
}
"""By Pillow's mode, and what else tells them apart; the last ones no file has."""
