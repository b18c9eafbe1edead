"""The facts about a model's architecture that a forward pass needs, from its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.cutting import PreparedCut
from tpcal.plans.executor.kernels import FlashLayer
from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded
from tpcal.plans.plan_records import PROPORTIONAL


def with_grids(
    family: Family, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
) -> PromptTokens:
    """The prompt with the grids of its images.

    Args:
        family: The family of the model.
        model: The model.
        prompt: The prompt without grids.
        inputs: Arguments of the base model.

    Raises:
        UsageError: The prompt's visual tokens are not those of its images.
    """
    # What images were encoded with comes first; the arguments of this very call override it.
    given = {name: value for name, value in inputs.items() if value is not None}
    grids = family.grids(model, prompt, {**encoded.arguments(inputs), **given})
    counts = tuple(sum(len(grid.row) for grid in row) for row in grids)
    if counts != prompt.n_visual:
        raise UsageError(
            f"The visual tokens of each prompt must be those of its images, {list(counts)} by "
            f"their sizes; got {list(prompt.n_visual)}. Pass the processor's output unchanged."
        )
    # A family whose images are attended in both directions lets visual tokens see later text too.
    mixed = prompt.text_before_visual or family.bidirectional
    return replace(prompt, grids=grids, text_before_visual=mixed)


def shared_layers(family: Family, model: PreTrainedModel) -> dict[int, int]:
    """The layers that read the keys and values of an earlier layer, each with that layer."""
    sources = {at: family.key_source(model, at) for at in range(len(family.layers(model)))}
    return {at: source for at, source in sources.items() if source != at}


def flash_layers(family: Family, model: PreTrainedModel) -> dict[int, FlashLayer]:
    """What the executor must know of each layer to run it with a flash kernel."""
    # A cache is made with the window of each layer, whatever the config calls it.
    cached = dict(enumerate(DynamicCache(config=model.config).layers))
    windows = {at: getattr(layer, "sliding_window", None) for at, layer in cached.items()}
    return {
        at: FlashLayer(
            windows.get(family.key_source(model, at)),
            getattr(family.attention(layer), "is_causal", True),
        )
        for at, layer in enumerate(family.layers(model))
    }


def without_flash(
    family: Family, model: PreTrainedModel, cuts: Mapping[int, PreparedCut]
) -> dict[int, nn.Module]:
    """The attention modules, by layer, that a flash kernel may not be able to serve after a cut.

    They have a sliding window, read the keys of an earlier layer, or count tokens several times.

    Args:
        family: The family of the model.
        model: The model.
        cuts: The cuts, by layer.
    """
    layers, shared = family.layers(model), shared_layers(family, model)
    first = min(cuts, default=len(layers))
    counts = any(cut.merge == PROPORTIONAL for cut in cuts.values())
    return {
        at: family.attention(layers[at])
        for at, layer in flash_layers(family, model).items()
        if at >= first and (counts or layer.window is not None or at in shared)
    }
