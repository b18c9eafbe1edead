from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import opened
import processors
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.calibrate.evaluation.controls import PlanBeside, control, keep_within
from tpcal.calibrate.evaluation.downsized import (
    Resized,
    Scaled,
    _of_one_size,
    smaller_images,
)
from tpcal.calibrate.evaluation.generate import Answered, InMemory, answer_all
from tpcal.calibrate.evaluation.variants import Impossible, Pruned, RandomlyPruned, Variant
from tpcal.calibrate.inputs.images import as_rgb
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.families import decoder_shape, identity
from tpcal.plans.plan_records import Cut, Plan, n_keep


@pytest.mark.parametrize(
    ("target", "n_visual", "counts"),
    [
        (0.22, [144], [31]),  # 31.68 tokens
        (0.25, [16, 16], [4, 4]),  # met exactly, whatever binary fractions say
        (0.3, [10, 20], [3, 6]),
        (1.0, [7, 9], [7, 9]),
        (0.22, [0, 144], [0, 31]),  # a prompt without an image counts for nothing
    ],
)
def test_a_control_keeps_the_most_that_is_no_dearer(
    target: float, n_visual: list[int], counts: list[int]
) -> None:
    keep = keep_within(target, n_visual)
    assert [n_keep(keep, n) for n in n_visual] == counts


def test_less_than_a_token_is_nothing(loaded: Loaded, scenes: Samples) -> None:
    assert keep_within(0.05, [16]) == 0
    for name in ("random", "grid", "downsized"):
        with pytest.raises(Impossible, match="would cost more"):
            control(name, PlanBeside(0.05, [16] * 6), loaded, scenes, 4)


def _answered(loaded: Loaded, samples: Samples, variant: Variant) -> tuple[Answered, ...]:
    (given,) = answer_all(loaded, samples, [(variant, InMemory())], batch_size=3, max_new_tokens=2)
    return given


def test_tokens_are_counted_in_every_layer(loaded: Loaded, scenes: Samples) -> None:
    cuts = (Cut(1, 0.5, "grid"), Cut(3, 0))
    for answer in _answered(loaded, scenes, Pruned(Plan(cuts))):
        assert (answer.n_visual, answer.counts) == (16, ((1, 8), (3, 0)))
        assert answer.schedule(4) == [16, 8, 8, 0]


def test_a_batch_without_images_is_answered_too() -> None:
    blank = Sample("blank", (), "why ?")
    variants = [(Pruned(Plan((Cut(1, 0.5, "grid"),))), InMemory())]
    samples = Samples.of([blank, *_pictures((32, 32))])
    (given,) = answer_all(_tiny("vipllava"), samples, variants, batch_size=1, max_new_tokens=1)
    assert [(answer.n_visual, answer.counts) for answer in given] == [
        (0, ((1, 0),)),
        (16, ((1, 8),)),
    ]


def test_every_batch_is_another_draw(loaded: Loaded, scenes: Samples) -> None:
    variant = control("random", PlanBeside(0.25, [16] * 6), loaded, scenes, 3)
    assert isinstance(variant, RandomlyPruned)
    kept = []
    for start in (0, 3, 0):
        with variant.applied(loaded, start) as handle:
            assert handle is not None
            loaded.model(**variant.prompts(loaded, [scenes[0]]))
            assert handle.last is not None
            kept.append(handle.last.cuts[0].kept)
    assert kept[0] == kept[2] != kept[1]
    assert {answer.counts for answer in _answered(loaded, scenes, variant)} == {((0, 4),)}


def test_a_processor_of_one_size_gets_another_and_has_its_own_again(
    loaded: Loaded, scenes: Samples
) -> None:
    images: Any = loaded.processor.image_processor
    before = (images.size, images.crop_size)
    variant = control("downsized", PlanBeside(0.45, [16] * 6), loaded, scenes, 3)
    assert variant == Resized(48, 72)  # 2 x 3 of 4 x 4 patches of 24 pixels: 6 of 7.2 tokens
    answers = _answered(loaded, scenes, variant)
    assert {answer.n_visual for answer in answers} == {6}
    assert (images.size, images.crop_size) == before
    assert {answer.n_visual for answer in _answered(loaded, scenes, Pruned())} == {16}


def test_full_size_is_what_the_model_sees_unpruned(loaded: Loaded, scenes: Samples) -> None:
    variant = control("downsized", PlanBeside(1.0, [16] * 6), loaded, scenes, 3)
    unpruned, same = (_answered(loaded, scenes, w) for w in (Pruned(), variant))
    assert unpruned == same


def _tiny(kind: str) -> Loaded:
    """A tiny random model with a real processor."""
    model = import_module(f"tiny.{kind}").build("sdpa").model
    model.resize_token_embeddings(processors.N_TOKENS, mean_resizing=False)
    shape, own = decoder_shape(model), identity(model, kind, None)
    processor = getattr(processors, "llava" if kind == "vipllava" else kind)()
    return Loaded(model, processor, own, shape, kind)


def _pictures(*sizes: tuple[int, int]) -> Samples:
    made = [Image.effect_noise(size, 90).convert("RGB") for size in sizes]
    return Samples.of([Sample(str(i), (image,), "what ?") for i, image in enumerate(made)])


@pytest.fixture(scope="module")
def any_size() -> Loaded:
    """8 x 8 pixels become a token, at most 64 x 64 of them."""
    return _tiny("lighton_ocr")


def test_images_of_any_size_are_scaled_one_by_one(any_size: Loaded) -> None:
    samples = _pictures((64, 64), (64, 32), (64, 64))
    variant = smaller_images(any_size, samples, [64, 32, 64], 0.5)
    assert isinstance(variant, Scaled)
    small = [answer.n_visual for answer in _answered(any_size, samples, variant)]
    assert small == [25, 15, 25]  # 5 x 5 and 5 x 3 are the largest within 32 and 16


def test_large_images_whose_tokens_are_limited_are_scaled_too(any_size: Loaded) -> None:
    samples = _pictures((256, 256))  # half and a quarter of it have 64 tokens as well
    variant = smaller_images(any_size, samples, [64], 0.5)
    assert isinstance(variant, Scaled)
    assert [answer.n_visual for answer in _answered(any_size, samples, variant)] == [25]


def test_limits_of_an_area_are_no_sides(any_size: Loaded) -> None:
    images = Qwen2VLImageProcessorPil(min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28)
    limited = replace(any_size, processor=SimpleNamespace(image_processor=images))
    with pytest.raises(Impossible, match="The size of its images cannot be changed"):
        _of_one_size(limited, 256, 0.5)  # of an image of the fewest pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P tRNS", "RGBA", "CMYK"])
def test_an_image_of_any_mode_is_made_smaller_as_the_model_sees_it(
    any_size: Loaded, mode: str
) -> None:
    data = opened.in_pillow(opened.FILES[mode]())
    variant = Scaled(0.5)
    (image,), (seen,) = (
        variant.shown(any_size, Sample("1", (one,), "what ?")).images
        for one in (data, as_rgb(data))
    )
    assert image.size == seen.size < data.size
    assert image.tobytes() == seen.tobytes()


def test_what_cannot_be_shrunk_says_so(any_size: Loaded) -> None:
    samples = _pictures((64, 64))
    with pytest.raises(Impossible, match="1 tokens or more of an image with 64; only 0 would"):
        smaller_images(any_size, samples, [64], 0.01)
    with pytest.raises(Impossible, match="No sample has visual tokens"):
        smaller_images(any_size, samples, [0], 0.5)


@pytest.mark.parametrize(
    ("kind", "share", "n_visual"),
    [
        ("vipllava", 0.3, [4, 4, 4]),  # of 4 x 4
        ("vipllava", 0.75, [9, 9, 9]),
        ("llava_next", 0.75, [36, 34, 40]),  # an overview of 16 and tiles
        ("lighton_ocr", 0.3, [4, 3, 4]),
        ("lighton_ocr", 0.75, [9, 10, 14]),
    ],
)
def test_smaller_images_never_cost_more(kind: str, share: float, n_visual: list[int]) -> None:
    loaded, samples = _tiny(kind), _pictures((32, 32), (48, 24), (20, 60))
    full = [answer.n_visual for answer in _answered(loaded, samples, Pruned())]
    variant = smaller_images(loaded, samples, full, share)
    small = [answer.n_visual for answer in _answered(loaded, samples, variant)]
    assert small == n_visual
    assert all(m <= share * n for m, n in zip(small, full, strict=True))


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_overviews_and_tiles_cannot_be_few_tokens(kind: str) -> None:
    loaded, samples = _tiny(kind), _pictures((32, 32))
    (full,) = (answer.n_visual for answer in _answered(loaded, samples, Pruned()))
    with pytest.raises(Impossible, match=f"36 tokens or more of an image with {full}"):
        smaller_images(loaded, samples, [full], 0.3)
