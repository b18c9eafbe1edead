"""Images cut into tiles; the prompt gives the number of tiles, but not their arrangement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded
from tpcal.plans.images.tiles import arrangement, lost_view, sketches, tile_views, whole_view

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass

_SKETCHES = "_tpcal_sketches"


class Mosaic(Family):
    """Base of the families whose images are tiles, followed by an overview if there are several.

    The arrangement of the tiles follows from the pixels (`tpcal.plans.images.tiles.arrangement`).
    """

    def tile_side(self, model: PreTrainedModel) -> int:
        """Number of tokens along one side of a tile."""
        raise NotImplementedError

    def tile_counts(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> list[list[int]]:
        """Number of tiles of each image of each row, the overview included."""
        raise NotImplementedError

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """One view for each tile, in reading order, and one for the overview."""
        n_tile = self.tile_side(model) ** 2
        counts = self.tile_counts(model, prompt, inputs)
        looks = _of_rows(_tiles(inputs), counts)
        return tuple(
            _row_views(counts_of_row, look, n_tile)
            for counts_of_row, look in zip(counts, looks, strict=True)
        )

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Makes features that `generate` encodes in advance carry coarse copies of the tiles."""
        base: Any = self.base(model)
        encode = base.get_image_features

        @wraps(encode)  # generate reads the signature to know what to pass
        def sketched(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = encode(pixel_values, *args, **kwargs)
            if not isinstance(output, tuple):
                setattr(output, _SKETCHES, sketches(pixel_values))
            return output

        encoded.exchange(base, "get_image_features", sketched, undo)


def _tiles(inputs: Mapping[str, Any]) -> Tensor | None:
    """Sketches of all tiles of the batch; None if they were encoded while no plan was applied."""
    if "pixel_values" in inputs:
        return sketches(inputs["pixel_values"])
    output = (inputs.get("mm_encoder_outputs") or {}).get("image")
    return getattr(output, _SKETCHES, None)


def _of_rows(tiles: Tensor | None, counts: list[list[int]]) -> list[Tensor | None]:
    """The tiles of each row; `generate` repeats rows for beams after it has encoded the images."""
    sizes = [sum(row) for row in counts]
    if tiles is None or not len(tiles) or sum(sizes) % len(tiles):
        return [None] * len(counts)
    repeats = sum(sizes) // len(tiles)
    apart = tiles.split(sizes[::repeats])
    return [apart[at // repeats] for at in range(len(counts))]


def _row_views(counts: list[int], tiles: Tensor | None, n_tile: int) -> tuple[ViewGrid, ...]:
    """The views of a row whose images have ``counts`` tiles."""
    views: list[ViewGrid] = []
    done = 0
    for image, n in enumerate(counts):
        mine = None if tiles is None else tiles[done : done + n]
        views += _image_views(n, mine, n_tile, image)
        done += n
    return tuple(views)


def _image_views(n: int, tiles: Tensor | None, n_tile: int, image: int) -> list[ViewGrid]:
    if n == 1:
        return [whole_view(n_tile, image)]
    shape = None if tiles is None else arrangement(tiles[:-1], tiles[-1])
    if shape is None:
        return [lost_view(n_tile, image) for _ in range(n)]
    return [*tile_views(n_tile, *shape, image), whole_view(n_tile, image)]
