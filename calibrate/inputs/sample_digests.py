"""Short digests of the samples a plan was made from, so that it is not tested on them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from PIL import Image

from tpcal.calibrate.inputs.images import upright
from tpcal.calibrate.inputs.sample import Sample

N_BYTES = 5
"""Length of a digest. Among a thousand samples and a thousand others, the chance that any two
digests are equal is about one in a million: 10**6 pairs / 2**40 digests."""


def identity(sample: Sample) -> bytes:
    """[N_BYTES] digest of the question, the turns before it, and the pixels.

    Id, group and answer do not count. Images count in RGB over white and upright, so that a copy
    that was turned by EXIF or converted is the same sample.
    """
    digest = hashlib.sha256(sample.question.encode())
    for turn in sample.turns:
        digest.update(f"\0{turn!r}".encode())
    for image in (_over_white(upright(image)) for image in sample.images):
        digest.update(f"\0{image.size}".encode() + image.tobytes())
    return digest.digest()[:N_BYTES]


def _over_white(image: Image.Image) -> Image.Image:
    """The image in RGB, in the same way whichever release of transformers is installed."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pack(identities: Iterable[bytes]) -> str:
    """The digests as text, about 7 characters a sample; equal sets give equal text."""
    return base64.b64encode(b"".join(sorted(set(identities)))).decode()


def unpack(text: str) -> frozenset[bytes]:
    """The digests that were packed.

    Raises:
        ValueError: The text does not hold digests.
    """
    data = base64.b64decode(text, validate=True)
    if len(data) % N_BYTES:
        raise ValueError(f"digests must be {N_BYTES} bytes each; got {len(data)} in all.")
    return frozenset(data[i : i + N_BYTES] for i in range(0, len(data), N_BYTES))
