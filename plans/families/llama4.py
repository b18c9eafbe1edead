"""Llama 4: a grid of tiles and an overview; some layers have chunks, others no positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcal.plans.executor import compat
from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family
from tpcal.plans.images.tiles import lost_view, tile_views, whole_view
from tpcal.plans.images.views import warn_of_runs

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass


class Llama4(Family):
    """Supports Llama 4, whose images are tiles with an overview.

    Source:
        Meta 2025 (model card of Llama 4).
    """

    name = "llama4"
    architectures = ("Llama4ForConditionalGeneration",)

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """The stack of decoder layers; `get_decoder` returns the causal model around it."""
        inner: Any = model
        return inner.language_model.model

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """One view for every tile, in reading order, followed by one for the overview.

        The tokens between the tiles show how the tiles are arranged.
        """
        if "input_ids" not in inputs:
            warn_of_runs()
            return super().grids(model, prompt, inputs)
        vision: Any = model.config.vision_config
        side = vision.image_size // vision.patch_size * vision.pixel_shuffle_ratio
        end = model.config.eoi_token_index
        return tuple(
            _row_views(ids, visual, end, round(side * side))
            for ids, visual in zip(
                inputs["input_ids"].tolist(), prompt.visual.tolist(), strict=True
            )
        )

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Gives every token the attention temperature of its place in the prompt.

        Layers without rotary positions scale each query by a temperature that depends on its place
        in the sequence. They count the place among the tokens that they receive, which are fewer
        after a cut.
        """
        text: Any = model.config.get_text_config()
        for at, layer in enumerate(self.layers(model)):
            attention: Any = layer.self_attn
            if attention.use_rope or not attention.attn_temperature_tuning:
                continue
            for hook in _rescaling(attention, at, text, current):
                undo.callback(hook.remove)

    def ffn(self, text: Any) -> int:
        """Mean width over dense layers and the experts that a token visits."""
        n_layers, n_sparse = text.num_hidden_layers, len(text.moe_layers)
        sparse = text.intermediate_size * (1 + text.num_experts_per_tok)  # one expert is shared
        dense = text.intermediate_size_mlp
        return int((n_sparse * sparse + (n_layers - n_sparse) * dense) // n_layers)


FAMILY = Llama4()


def _rescaling(
    attention: Any, layer: int, text: Any, current: Callable[[], ForwardPass | None]
) -> tuple[Any, Any]:
    """Adds hooks that replace the temperature of a token's column by that of its place."""
    ratios: WeakKeyDictionary[ForwardPass, Tensor] = WeakKeyDictionary()  # [B, m, 1] factors

    def before(module: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        run = current()
        if run is None or kwargs is None or run.survivors.places is None:
            return
        cache = compat.given_cache(kwargs)
        n_past = 0 if cache is None else cache.get_seq_length(layer)
        if n_past + run.length >= text.floor_scale:  # all temperatures at smaller places are 1
            places = run.survivors.places
            columns = torch.arange(places.shape[1], device=places.device)
            scales = [_temperature(n_past + at, text) for at in (places, columns)]
            ratios[run] = (scales[0] / scales[1])[..., None]

    def rescale(module: nn.Module, args: Any, query: Tensor) -> Tensor | None:
        run = current()
        ratio = None if run is None else ratios.pop(run, None)
        return None if ratio is None else (query * ratio.to(query.device)).to(query.dtype)

    return (
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.q_proj.register_forward_hook(rescale),
    )


def _temperature(place: Tensor, text: Any) -> Tensor:
    """Factor of a query at this place (arXiv 2501.19399, as in transformers)."""
    return (torch.floor((place.float() + 1) / text.floor_scale)).log1p() * text.attn_scale + 1


def _row_views(
    ids: Sequence[int], visual: Sequence[bool], end: int, n_tokens: int
) -> tuple[ViewGrid, ...]:
    """The views of a row's images from its tokens; ``end`` follows every image."""
    images: list[list[list[int]]] = []  # for each image, the tokens before each of its tiles
    gap: list[int] = []
    for at, (token, is_visual) in enumerate(zip(ids, visual, strict=True)):
        if not is_visual:
            gap.append(token)
        elif at == 0 or not visual[at - 1]:
            if not images or end in gap:
                images.append([])
            images[-1].append(gap)
            gap = []
    return tuple(
        view for image, gaps in enumerate(images) for view in _views(gaps[1:], n_tokens, image)
    )


def _views(gaps: Sequence[Sequence[int]], n_tokens: int, image: int) -> list[ViewGrid]:
    """The views of an image from the tokens between its tiles.

    The last tile is the overview. The token that follows the last row of tiles follows every row
    of tiles.
    """
    n_tiles = len(gaps)
    if not n_tiles:
        return [whole_view(n_tokens, image)]
    n_rows = sum(gap[0] == gaps[-1][0] for gap in gaps)
    if n_tiles % n_rows:
        return [lost_view(n_tokens, image) for _ in range(n_tiles + 1)]
    tiles = tile_views(n_tokens, n_rows, n_tiles // n_rows, image)
    return [*tiles, whole_view(n_tokens, image)]
