"""What a call of the decoder runs over: its rows and tokens, and which of them are visual."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.drafts import n_drafts
from tpcal.plans.executor.prompt import PromptTokens, read_prompt
from tpcal.plans.families.base import Family
from tpcal.plans.images.vision_reader import Vision

_LOG = logging.getLogger(__name__)


def size(arguments: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of rows and of tokens of a call of the decoder.

    Args:
        arguments: Keyword arguments of the call.
        inputs: What the base model around it was called with; empty if there is none.

    Raises:
        UsageError: There is neither ``input_ids`` nor ``inputs_embeds``.
    """
    given = arguments.get("inputs_embeds")
    given = given if given is not None else arguments.get("input_ids")
    for tensor in (given, inputs.get("input_ids"), inputs.get("inputs_embeds")):
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1]
    raise UsageError("The decoder must be called with input_ids or inputs_embeds by keyword.")


def prompt_of(
    family: Family, model: PreTrainedModel, inputs: Mapping[str, Any], vision: Vision | None
) -> PromptTokens | None:
    """The prompt that the base model was called with; None if it has no visual tokens.

    Args:
        family: The family of the model.
        model: The model.
        inputs: What the base model was called with.
        vision: What was read in the vision tower; None if the plan does not need it.
    """
    visual = _visual_mask(family, model, inputs)
    if visual is None:
        return None
    mask = inputs.get("attention_mask")
    drafted = n_drafts(inputs, visual.shape[1])
    if drafted == visual.shape[1]:
        return None
    prompt = read_prompt(visual, mask if _is_flat(mask) else None, n_drafts=drafted)
    if max(prompt.n_visual) == 0:
        if inputs.get("input_ids") is None:
            _LOG.warning("No visual token was found in inputs_embeds, so nothing is pruned.")
        return None
    prompt = with_grids(family, model, prompt, inputs).to(visual.device)
    return prompt if vision is None else replace(prompt, vision=vision.of(prompt, inputs))


def first_visual(family: Family, model: PreTrainedModel, inputs: Mapping[str, Any]) -> int | None:
    """Number of tokens of a pass before the first visual token of any row; None without images.

    Arguments as `prompt_of`.
    """
    visual = _visual_mask(family, model, inputs)
    if visual is None:
        return None
    columns = visual.any(0).nonzero()
    return int(columns[0]) if len(columns) else None


def _visual_mask(
    family: Family, model: PreTrainedModel, inputs: Mapping[str, Any]
) -> Tensor | None:
    """[B, S] bool of a pass; None if the decoder was called without the base model."""
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if ids is None and embeds is None:
        return None
    return family.visual_mask(model, ids, embeds)


def _is_flat(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2
