"""Whether calibration makes the same logits of the last states as the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, __version__

from tpcal.calibrate.inputs.models import device_of
from tpcal.plans.errors import UsageError
from tpcal.plans.families import find

_N_TOKENS = 16


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Raises UsageError if a model does more to its logits than its family knows.

    Replays run the decoder's layers alone and apply the final norm and the output head themselves.
    What a model does to its logits besides, such as a limit or a scale, differs between
    architectures and between releases of transformers, and a family that misses it gives wrong
    losses. The check runs the model once on a few tokens of text.

    Example:
        >>> from tpcal.calibrate.inputs.models import load
        >>> from tpcal.calibrate.output_head import check_logits
        >>> check_logits(load("embedded").model)
    """
    family = find(model)
    states: list[Tensor] = []

    def before(module: Any, args: tuple[Tensor, ...]) -> None:
        states.append(args[0])

    norm = family.final_norm(model)
    hook = norm.register_forward_pre_hook(before)
    try:
        ids = _text(model, family.visual_ids(model))
        wanted = model(**family.numbered(ids), use_cache=False).logits.float()
    finally:
        hook.remove()
    made = family.logits(model, norm(states[-1])).float()
    # Both apply the same operations to the same states, so that they differ by rounding at most.
    most = 8 * torch.finfo(model.dtype).eps * wanted.abs().max()
    if (made - wanted).abs().max() > most:
        way_out = f"Override logits in plans/families/{family.name}.py"
        if family.name == "generic":  # whose logits are those of many other models
            way_out = "Add plans/families/<name>.py with its logits"
        raise UsageError(
            f"The logits of {type(model).__name__} in transformers {__version__} must be what the "
            f"family {family.name} makes of the last states; got others. {way_out} "
            "(docs/families.md), and please report it."
        )


def _text(model: PreTrainedModel, visual: tuple[int, ...]) -> dict[str, Tensor]:
    """[1, S] tokens that stand for no image, all of them real."""
    tokens = [token for token in range(_N_TOKENS + len(visual)) if token not in visual]
    ids = torch.tensor([tokens[:_N_TOKENS]], device=device_of(model))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
