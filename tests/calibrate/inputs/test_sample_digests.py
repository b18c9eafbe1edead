from __future__ import annotations

import hashlib
from dataclasses import replace

import opened
import pytest
from PIL import Image, ImageOps
from releases import skip_elsewhere

from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_digests import N_BYTES, identity, pack, unpack
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat


@pytest.fixture
def sample() -> Sample:
    return Sample("1", (Image.new("RGB", (4, 2), "red"),), "what ?", "red", "colour")


def test_a_sample_is_its_question_and_its_pixels(sample: Sample) -> None:
    same = replace(sample, id="2", answer=None, group="other")
    assert identity(same) == identity(sample)
    others = [
        replace(sample, question="what?"),
        replace(sample, images=(Image.new("RGB", (4, 2), "blue"),)),
        replace(sample, images=(Image.new("RGB", (2, 4), "red"),)),
        replace(sample, images=sample.images * 2),
    ]
    assert len({identity(one) for one in [sample, *others]}) == 5


OPAQUE = ("1", "L", "P", "RGB", "RGB jpeg", "RGB turned", "CMYK", "CMYK tiff", "YCbCr", "HSV")


@pytest.mark.parametrize("mode", OPAQUE)
def test_samples_of_earlier_plans_are_known_again(mode: str) -> None:
    """Plans name them by what a bare conversion to RGB, turned upright, had of them."""
    image = opened.in_pillow(opened.FILES[mode]())
    rgb = ImageOps.exif_transpose(image).convert("RGB")
    wanted = hashlib.sha256(f"What?\0{rgb.size}".encode() + rgb.tobytes()).digest()[:N_BYTES]
    assert identity(Sample("1", (image,), "What?")) == wanted


def test_an_earlier_digest_and_fingerprint_are_what_they_were() -> None:
    images = (opened.colours(), opened.colours().convert("L").convert("RGB"))
    samples = Samples.of([Sample("1", images, "What?", "a", "g")])
    assert samples.identities[0].hex() == "2eb0a80ef5"
    assert samples.fingerprint.startswith("sha256:854afc84f8c30a24d532f7cd6cf397a7e42a79ff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_known_in_every_release(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = opened.drawing().convert("RGBA")
    image = drawing.convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    monkeypatch.setattr(compat, "converted_to_rgb", lambda image: image.convert("RGB"))
    assert identity(Sample("1", (image,), "What?")) == identity(Sample("1", (flat,), "What?"))


def test_drawings_that_differ_in_opacity_alone_are_others() -> None:
    drawing = opened.drawing()
    other = drawing.copy()
    other.putalpha(200)
    if compat.converted_to_rgb(drawing) == compat.converted_to_rgb(other):
        skip_elsewhere("it drops opacity, so that a model sees the same")
    one, two = (Samples.of([Sample("1", (image,), "What?")]) for image in (drawing, other))
    assert one.identities != two.identities
    assert one.fingerprint != two.fingerprint


def test_a_packed_set_comes_back_whatever_its_order() -> None:
    digests = [bytes([i] * N_BYTES) for i in (3, 1, 2)]
    assert unpack(pack(digests)) == set(digests)
    assert pack(digests) == pack([*reversed(digests), digests[0]])
    assert unpack(pack([])) == frozenset()
    assert len(pack(digests)) == 20
    for broken in ("AAAA", "not base64!"):
        with pytest.raises(ValueError, match=r"bytes each|base64"):
            unpack(broken)


def test_samples_know_their_own_and_splits_are_apart() -> None:
    few, more = load_samples(n=7), load_samples(n=14)
    assert more.identities[:7] == few.identities
    assert len(set(more.identities)) == 14
    assert not set(more.identities) & set(load_samples(n=14, split="eval").identities)
    assert Samples.of(few).identities == few.identities


def test_what_was_seen_is_left_out_wherever_it_stands() -> None:
    drawn = load_samples(n=6, split="eval")
    seen = {drawn.identities[0], drawn.identities[3]}
    new = drawn.without(seen)
    assert new.identities == tuple(one for one in drawn.identities if one not in seen)
    assert new.description == f"the 4 new of {drawn.description}"
    assert drawn.without({b"other"}) is drawn
    with pytest.raises(UsageError, match="Samples must be new; got 6 that the plan was made from"):
        drawn.without(set(drawn.identities))
