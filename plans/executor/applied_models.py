"""The models that a plan is applied to now."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Lock
from weakref import WeakSet

from torch import nn
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.families import find

_APPLIED: WeakSet[nn.Module] = WeakSet()
_APPLYING = Lock()


def is_applied(model: PreTrainedModel) -> bool:
    """Whether a plan is applied to this model now."""
    model = unwrapped(model)
    return find(model).decoder(model) in _APPLIED


def register(decoder: nn.Module, undo: ExitStack) -> None:
    """Notes that a plan is applied to the model with this decoder, until ``undo`` is closed.

    Raises:
        UsageError: A plan is already applied to it.
    """
    with _APPLYING:
        if decoder in _APPLIED:
            raise UsageError(
                "Only one plan can be applied to a model at a time; call remove() on the first."
            )
        _APPLIED.add(decoder)
    undo.callback(_APPLIED.discard, decoder)
