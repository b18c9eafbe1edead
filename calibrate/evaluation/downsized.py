"""Control with smaller images: fewer pixels become fewer visual tokens, the simplest saving.

There are two kinds of processors. Some make more tokens of larger images; for these, images are
scaled down before the processor sees them. Others bring all images to one size; these are given a
smaller size, and the vision tower interpolates its position embeddings, as transformers does for
CLIP-like towers.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tpcal.calibrate.evaluation.variants import Applied, Impossible, Variant
from tpcal.calibrate.inputs.batches import n_tokens, prompt_inputs
from tpcal.calibrate.inputs.images import as_rgb
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples

N_STEPS = 128
"""Number of image sizes to choose from; step i scales width and height by i / `N_STEPS`."""
Sizes = tuple[tuple[int, int], ...]
_SMALL = 32
"""Images are not halved further if a side has fewer pixels."""


@dataclass(frozen=True)
class Scaled(Variant):
    """Scales images to the largest size at which a prompt has at most a share of its tokens."""

    same_prompts: ClassVar[bool] = False
    share: float
    """Largest share of the visual tokens that the prompt has at full size."""
    _known: dict[Sizes, Sizes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> Mapping[str, Any]:
        return {"scaled_to": self.share}

    def applied(self, loaded: Loaded, start: int) -> Applied:
        return nullcontext()

    def prompts(self, loaded: Loaded, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """As `Variant`.

        Raises:
            Impossible: The processor makes too many tokens of the smallest image.
        """
        return prompt_inputs(
            loaded.processor, [self.shown(loaded, s) for s in batch], loaded.model
        )

    def shown(self, loaded: Loaded, sample: Sample) -> Sample:
        """The sample with smaller images.

        Raises:
            Impossible: The processor makes too many tokens of the smallest image.
        """
        sizes = tuple(image.size for image in sample.images)
        if sizes not in self._known:
            self._known[sizes] = self._fitting(loaded, sample)
        return _resized(sample, self._known[sizes])

    def _fitting(self, loaded: Loaded, sample: Sample) -> Sizes:
        # The largest step whose prompt has at most floor(share * tokens at full size), found by
        # bisection: about 8 encodings in place of 128. The sizes of a sample's images decide the
        # number of tokens, so the result is kept for samples of the same sizes.
        allowed = int(self.share * _n_visual(loaded, sample) * (1 + 1e-9))
        steps = range(1, N_STEPS + 1)

        def n_visual(step: int) -> int:
            return _n_visual(loaded, _resized(sample, _at(sample, step)))

        # Bisection ends next to a step it has tried, so that step is within the bound even if the
        # counts do not rise everywhere.
        fitting = bisect_right(steps, allowed, key=n_visual)
        if not fitting:
            least, full = n_visual(1), _n_visual(loaded, sample)
            raise Impossible(
                f"The processor makes {least} tokens or more of an image with {full}; only "
                f"{allowed} would be as cheap."
            )
        return _at(sample, steps[fitting - 1])


@dataclass(frozen=True)
class Resized(Variant):
    """Brings every image to one smaller size, for a processor that knows one size only."""

    same_prompts: ClassVar[bool] = False
    height: int
    """Height of images, in pixels."""
    width: int
    """Width of images, in pixels."""

    @property
    def key(self) -> Mapping[str, Any]:
        return {"resized_to": [self.height, self.width]}

    @contextmanager
    def applied(self, loaded: Loaded, start: int) -> Iterator[None]:
        """As `Variant`: sets the processor's size, lets the tower interpolate, restores both."""
        images: Any = loaded.processor.image_processor
        with ExitStack() as undo:
            for name in ("size", "crop_size"):
                old = getattr(images, name, None)
                if old:
                    undo.callback(setattr, images, name, old)
                    setattr(images, name, self._like(dict(old)))
            for module in loaded.model.modules():
                if _interpolates(module):
                    hook = module.register_forward_pre_hook(_interpolated, with_kwargs=True)
                    undo.callback(hook.remove)
            yield

    def _like(self, size: Mapping[str, int]) -> dict[str, int]:
        if "shortest_edge" in size:
            return {"shortest_edge": min(self.height, self.width)}
        return {"height": self.height, "width": self.width}


def smaller_images(
    loaded: Loaded, samples: Samples, n_visual: Sequence[int], share: float
) -> Scaled | Resized:
    """The variant with the largest images that have at most a share of the visual tokens.

    Args:
        loaded: The model.
        samples: The questions.
        n_visual: [n] visual tokens of each question's prompt at full size.
        share: Largest share of the visual tokens, in (0, 1].

    Raises:
        Impossible: This model or its processor cannot do it with the largest prompt.
    """
    number = max(range(len(n_visual)), key=n_visual.__getitem__)
    sample, full = samples[number], n_visual[number]
    if full == 0:
        raise Impossible("No sample has visual tokens.")
    if _follows_size(loaded, sample, full):
        scaled = Scaled(round(share, 6))
        scaled.shown(loaded, sample)
        return scaled
    variant = _of_one_size(loaded, full // len(sample.images), share)
    _try(loaded, variant, sample, full, share)
    return variant


def _follows_size(loaded: Loaded, sample: Sample, full: int) -> bool:
    """Whether the processor makes fewer tokens of smaller images; else it knows one size only."""
    # Half of a very large image may have as many tokens, because processors limit their number.
    step, side = N_STEPS, _SMALL
    while step > 1 and side >= _SMALL:
        step //= 2
        sizes = _at(sample, step)
        if _n_visual(loaded, _resized(sample, sizes)) < full:
            return True
        side = min(map(min, sizes))
    return False


def _of_one_size(loaded: Loaded, n_tokens: int, share: float) -> Resized:
    """The largest image size, square or nearly so, within a share of ``n_tokens``.

    Raises:
        Impossible: The size cannot be changed, or even one token is more than the share.
    """
    images: Any = loaded.processor.image_processor
    size = dict(getattr(images, "size", None) or {})
    side = size.get("shortest_edge", size.get("height"))
    rows = isqrt(n_tokens)
    # Beside a longest edge, the shortest one is a limit; of an area, in the processors of Qwen.
    if side is None or "longest_edge" in size or rows * rows != n_tokens:
        raise Impossible("The size of its images cannot be changed.")
    square = "shortest_edge" in size  # the longer edge follows from each image's proportions
    # At full size the tokens form a square of side r = sqrt(n_tokens), each of side // r pixels.
    # The candidates are h x h tokens and, unless the processor sets the shorter edge only,
    # h x (h + 1) tokens, for h = 1 … r; the largest product that is allowed wins.
    allowed = share * n_tokens * (1 + 1e-9)
    fitting = [
        (h, w)
        for h in range(1, rows + 1)
        for w in ((h,) if square else (h, h + 1))
        if h * w <= allowed
    ]
    if not fitting:
        raise Impossible(f"One of the {n_tokens} tokens of an image would cost more.")
    h, w = max(fitting, key=lambda size: size[0] * size[1])
    unit = side // rows
    return Resized(h * unit, w * unit)


def _try(loaded: Loaded, variant: Resized, sample: Sample, n_visual: int, share: float) -> None:
    """Runs the model once with the smaller image.

    Raises:
        Impossible: The model refuses the image, or the image still has too many tokens.
    """
    try:
        with variant.applied(loaded, 0), torch.inference_mode():
            prompts = variant.prompts(loaded, [sample])
            loaded.model(**prompts)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Impossible(
            f"The model takes no image of {variant.width} x {variant.height}: {reason}."
        ) from error
    left = n_tokens(loaded, prompts)[0][0]
    if left > share * n_visual * (1 + 1e-9):
        raise Impossible(
            f"An image of {variant.width} x {variant.height} still has {left} tokens."
        )


def _interpolates(module: nn.Module) -> bool:
    name = "interpolate_pos_encoding"
    return (
        callable(getattr(module, name, None))
        and name in inspect.signature(module.forward).parameters
    )


def _interpolated(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    return args, {**kwargs, "interpolate_pos_encoding": True}


def _n_visual(loaded: Loaded, sample: Sample) -> int:
    return n_tokens(loaded, prompt_inputs(loaded.processor, [sample], loaded.model))[0][0]


def _at(sample: Sample, step: int) -> Sizes:
    """(width, height) of the images, scaled by ``step`` / `N_STEPS`, at least one pixel."""
    sizes = [image.size for image in sample.images]
    return tuple((max(1, w * step // N_STEPS), max(1, h * step // N_STEPS)) for w, h in sizes)


def _resized(sample: Sample, sizes: Sizes) -> Sample:
    pairs = zip(sample.images, sizes, strict=True)
    return replace(sample, images=tuple(as_rgb(image).resize(size) for image, size in pairs))
