"""The embeddings of a prompt after a cut before layer 0, for engines that take prompt embeddings.

The model runs up to its first decoder layer. Nothing else of it changes, and other threads may use
it at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcal.plans.engines import EMBEDDINGS
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.cutting import prepare
from tpcal.plans.executor.decoder_inputs import prompt_of
from tpcal.plans.executor.fit import check
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.executor.passes import DecoderParts, ForwardPass
from tpcal.plans.executor.rope_deltas import twin_of
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.images import vision_reader
from tpcal.plans.plan_names import load_plan
from tpcal.plans.plan_records import Plan

_READ = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position")


@dataclass(frozen=True)
class PrunedPrompt:
    """What is left of a prompt after a plan's cut before layer 0."""

    inputs_embeds: Tensor
    """[1, K, D] the embeddings of the text and of the visual tokens that stay, in order."""
    position_ids: Tensor
    """[..., 1, K] their positions in the unpruned prompt, as the decoder takes them."""
    attention_mask: Tensor
    """[1, K] ones. Without it transformers takes positions with gaps for packed sequences."""
    kept: Tensor
    """[K] int64, their columns in ``input_ids``."""


def pruned_prompt(
    model: PreTrainedModel, plan: Plan | Path | str, inputs: Mapping[str, Any]
) -> PrunedPrompt:
    """The embeddings and positions of a prompt after a plan that cuts before layer 0 only.

    The decoder gives the same states for them as the model with the plan applied, provided that it
    is told the positions. An engine that numbers the tokens of a prompt itself moves the text
    closer to the image.

    Args:
        model: The model, with no plan applied. Its layers do not run.
        plan: The plan, as `tpcal.lower` makes it, or its name as `tpcal.load_plan` takes it.
        inputs: What the processor gives for one prompt.

    Raises:
        FitError: The plan does not fit the model or cuts inside the decoder, or the decoder reads
            more than embeddings and positions.
        UsageError: There are several prompts, or a plan is applied to the model.

    Example:
        >>> import tpcal
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> from tpcal.calibrate.embedded import FOLDER
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> processor = AutoProcessor.from_pretrained(FOLDER)
        >>> image, question = Image.new("RGB", (96, 96), "grey"), "<image>Is there a red circle?"
        >>> inputs = processor(images=image, text=question, return_tensors="pt")
        >>> plan = tpcal.Plan(cuts=(tpcal.Cut(0, 0.25, "diversity"),))
        >>> prompt = tpcal.pruned_prompt(model, plan, inputs)
        >>> inputs["input_ids"].shape[1], prompt.inputs_embeds.shape[1]
        (151, 43)
    """
    model = unwrapped(model)
    plan = plan if isinstance(plan, Plan) else load_plan(plan, len(find(model).layers(model)))
    _refuse(model, plan, inputs)
    with torch.no_grad(), ExitStack() as undo:
        prepared = prepare(plan)
        looks = any("vision" in cut.needs for cut in prepared.values())
        family = find(model)
        seen = undo.enter_context(vision_reader.reading(family, model)) if looks else None
        reached = _first_layer(model, inputs)
        run = ForwardPass(
            prepared,
            prompt_of(family, model, inputs, seen),
            reached.states.shape[1],
            DecoderParts(family.final_norm(model), shared={}, probes={}, flash={}),
        )
        states, _, _ = run.before_layer(0, reached.states, {})
    places = run.survivors.places
    kept = torch.arange(run.length, device=states.device) if places is None else places[0]
    positions = reached.positions.index_select(-1, kept)
    return PrunedPrompt(states, positions, torch.ones_like(kept)[None], kept)


def _refuse(model: PreTrainedModel, plan: Plan, inputs: Mapping[str, Any]) -> None:
    name = plan.name or "The plan"
    problems = check(plan, model) + EMBEDDINGS.plan_problems(plan)
    if not problems and any(decoder_shape(model).kv_limits):
        problems.append(
            "The decoder must have no sliding window, which would count the tokens that are left."
        )
    if problems:
        raise FitError(name, problems)
    if is_applied(model):
        raise UsageError("No plan may be applied to the model; call remove() on its handle.")
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        raise UsageError("The inputs must hold input_ids, as the processor gives them; got none.")
    if ids.shape[0] != 1 or (mask is not None and not mask.all()):
        raise UsageError(
            f"Prompts must be given one by one and without padding; got {ids.shape[0]}."
        )


@dataclass(frozen=True)
class _FirstLayer:
    states: Tensor  # [1, S, D]
    positions: Tensor  # [..., 1, S]


class _Reached(Exception):
    """Ends a pass before its first layer."""


def _first_layer(model: PreTrainedModel, inputs: Mapping[str, Any]) -> _FirstLayer:
    """What the first layer gets of a prompt."""
    family, here = find(model), get_ident()
    given: dict[str, Any] = {}
    states: list[Tensor] = []

    def before_decoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() == here:
            given.update(kwargs)

    def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() == here:
            states.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

    hooks = [
        family.decoder(model).register_forward_pre_hook(before_decoder, with_kwargs=True),
        family.layers(model)[0].register_forward_pre_hook(before_layer, with_kwargs=True),
    ]
    try:
        # On a twin, as models with M-RoPE keep the offset of their last prompt on themselves.
        twin_of(family.base(model))(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    _refuse_more(model, given, states[0])
    positions = given.get("position_ids")
    if positions is None:  # the decoder counts them itself
        positions = torch.arange(states[0].shape[1], device=states[0].device)[None]
    return _FirstLayer(states[0], positions)


def _refuse_more(model: PreTrainedModel, given: Mapping[str, Any], states: Tensor) -> None:
    """Raises FitError if the layers read more than the embeddings and the positions."""
    known = (*_READ, *compat.CACHE_NAMES)
    plain = (bool, int, str, type(None))
    more = [k for k, v in given.items() if k not in known and not isinstance(v, plain)]
    mask, embeds = given.get("attention_mask"), given.get("inputs_embeds")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        more.append("a mask of its own")
    if embeds is None or not torch.equal(embeds, states):
        more.append("embeddings that it changes first")
    if more:
        raise FitError(
            f"The decoder of {type(model).__name__}",
            [f"It must read embeddings and positions alone; it reads {', '.join(more)}."],
        )
