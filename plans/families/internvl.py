"""InternVL, Qianfan-OCR and GOT-OCR2: tiles, then an overview, in one run of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.families.base import Family, run_lengths, whole_images
from tpcal.plans.stack import Grid, Prompt
from tpcal.plans.tiles import arrangement, lost_view, sketches, tile_views, whole_view

if TYPE_CHECKING:
    from tpcal.plans.forward import ForwardPass

_SKETCHES = "_tpcal_sketches"


class InternVL(Family):
    """Chen et al. 2024 (arXiv 2404.16821) and Wei et al. 2024 (arXiv 2409.01704).

    The prompt tells the number of an image's tiles and not how they lie, so that is read off the
    pixels (`tpcal.plans.tiles.arrangement`).
    """

    name = "internvl"
    architectures = (
        "GotOcr2ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "QianfanOCRForConditionalGeneration",
    )

    def grids(
        self, model: PreTrainedModel, prompt: Prompt, inputs: Mapping[str, Any]
    ) -> tuple[tuple[Grid, ...], ...]:
        """One view for every tile, in reading order, and one for the overview."""
        n_tile = _side(model.config) ** 2
        counts = [
            [whole_images(n, n_tile, "whole tiles") for n in lengths]
            for lengths in run_lengths(prompt.visual)
        ]
        looks = _of_rows(_tiles(inputs), counts)
        return tuple(
            _row_views(counts_of_row, look, n_tile)
            for counts_of_row, look in zip(counts, looks, strict=True)
        )

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Lets features that `generate` encodes beforehand carry coarse copies of the tiles."""
        base: Any = self.base(model)
        encode = base.get_image_features

        @wraps(encode)  # generate reads the signature to know what to pass
        def sketched(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = encode(pixel_values, *args, **kwargs)
            if not isinstance(output, tuple):
                setattr(output, _SKETCHES, sketches(pixel_values))
            return output

        marked = "get_image_features" in vars(base)
        base.get_image_features = sketched
        if marked:
            undo.callback(setattr, base, "get_image_features", encode)
        else:
            undo.callback(delattr, base, "get_image_features")


FAMILY = InternVL()


def _side(config: Any) -> int:
    """Tokens along a tile."""
    vision = config.vision_config
    if config.model_type == "got_ocr2":
        return vision.image_size // vision.patch_size // 4  # two convolutions of stride two
    return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)


def _tiles(inputs: Mapping[str, Any]) -> Tensor | None:
    """Sketches of all tiles of the batch; None where they were encoded before the plan's time."""
    if "pixel_values" in inputs:
        return sketches(inputs["pixel_values"])
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
    return getattr(encoded, _SKETCHES, None)


def _of_rows(tiles: Tensor | None, counts: list[list[int]]) -> list[Tensor | None]:
    """The tiles of each row. `generate` repeats rows for beams after it encoded them."""
    sizes = [sum(row) for row in counts]
    if tiles is None or not len(tiles) or sum(sizes) % len(tiles):
        return [None] * len(counts)
    repeats = sum(sizes) // len(tiles)
    apart = tiles.split(sizes[::repeats])
    return [apart[at // repeats] for at in range(len(counts))]


def _row_views(counts: list[int], tiles: Tensor | None, n_tile: int) -> tuple[Grid, ...]:
    """The views of a row's images of so many tiles each."""
    views: list[Grid] = []
    done = 0
    for image, n in enumerate(counts):
        mine = None if tiles is None else tiles[done : done + n]
        views += _image_views(n, mine, n_tile, image)
        done += n
    return tuple(views)


def _image_views(n: int, tiles: Tensor | None, n_tile: int, image: int) -> list[Grid]:
    if n == 1:
        return [whole_view(n_tile, image)]
    shape = None if tiles is None else arrangement(tiles[:-1], tiles[-1])
    if shape is None:
        return [lost_view(n_tile, image) for _ in range(n)]
    return [*tile_views(n_tile, *shape, image), whole_view(n_tile, image)]
