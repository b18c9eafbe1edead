"""Which samples were looked at, as short digests: a plan must not be tested on these."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.images import as_rgb, upright

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.samples import Sample

N_BYTES = 5
"""Of a digest. A thousand samples beside a thousand others agree by chance once in a million."""


def identity(sample: Sample) -> bytes:
    """[N_BYTES] digest of the question, all that was said before it, and the pixels.

    Neither id, group nor answer counts. Images count in RGB and upright: a copy that was turned or
    converted is the same sample.
    """
    digest = hashlib.sha256(sample.question.encode())
    for turn in sample.turns:
        digest.update(f"\0{turn!r}".encode())
    for image in (as_rgb(upright(image)) for image in sample.images):
        digest.update(f"\0{image.size}".encode() + image.tobytes())
    return digest.digest()[:N_BYTES]


def pack(identities: Iterable[bytes]) -> str:
    """Text for a plan's provenance, 7 characters a sample; the same set gives the same text."""
    return base64.b64encode(b"".join(sorted(set(identities)))).decode()


def unpack(text: str) -> frozenset[bytes]:
    """What was packed.

    Raises:
        ValueError: The text holds something else.
    """
    data = base64.b64decode(text, validate=True)
    if len(data) % N_BYTES:
        raise ValueError(f"digests must be {N_BYTES} bytes each; got {len(data)} in all.")
    return frozenset(data[i : i + N_BYTES] for i in range(0, len(data), N_BYTES))
