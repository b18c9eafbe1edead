"""Refuses labels that a model would predict from tokens that a plan dropped.

A dropped token has no state after the last layer, so what it would predict is not defined. The
model itself would compute a loss from logits of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from functools import wraps
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.survivors import Survivors

_IGNORED = -100
_LAST_PASS: ContextVar[tuple[Any, Survivors, int] | None] = ContextVar("tpcal_pass", default=None)
"""The handle, as a reference, the survivors and the length of the last pass in this context."""


def note(handle: object, survivors: Survivors, length: int) -> None:
    """Remembers what a pass of ``length`` tokens left, for the loss that may follow."""
    _LAST_PASS.set(None if survivors.places is None else (ref(handle), survivors, length))


def check_labels(model: PreTrainedModel, handle: object, undo: ExitStack) -> None:
    """Lets the model's loss raise UsageError for labels of dropped tokens.

    Args:
        model: The model.
        handle: What its passes run under.
        undo: Stack that reverts the change when it is closed.
    """
    before, loss = vars(model).get("_loss_function"), getattr(model, "loss_function", None)
    if loss is None:
        return
    model.loss_function = _checked(loss, handle)
    if before is None:
        undo.callback(delattr, model, "_loss_function")
    else:
        undo.callback(setattr, model, "loss_function", before)


def _checked(loss: Callable[..., Tensor], handle: object) -> Callable[..., Tensor]:
    @wraps(loss)
    def checked(*args: Any, **kwargs: Any) -> Tensor:
        last = _LAST_PASS.get()
        labels = kwargs.get("labels", args[1] if len(args) > 1 else None)
        shifted = kwargs.get("shift_labels")
        if shifted is None and labels is not None:
            shifted = nn.functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
        if last is not None and last[0]() is handle and shifted is not None:
            _require_known(shifted, last[1], last[2])
        return loss(*args, **kwargs)

    return checked


def _require_known(shifted: Tensor, survivors: Survivors, length: int) -> None:
    """Raises UsageError if a label [B, S], which stands at its predictor, has no prediction."""
    places = survivors.places
    assert places is not None
    if shifted.shape != (places.shape[0], length):
        return  # the model itself refuses it
    stays = torch.ones_like(places) if survivors.valid is None else survivors.valid.long()
    alive = torch.zeros(shifted.shape, dtype=torch.int64, device=places.device)
    alive = alive.scatter_add(1, places, stays) > 0  # filler shares the places of others
    wrong = (~alive & (shifted.to(alive.device) != _IGNORED)).nonzero().tolist()
    if wrong:
        row, place = wrong[0]
        raise UsageError(
            f"labels must be {_IGNORED} where the token before was dropped by the plan, as after "
            f"an image; got {len(wrong)} other labels, the first at [{row}, {place + 1}]. Set "
            "them to -100, or score inside `with handle.bypassed()`."
        )
