"""Hooks on a model's layers, and calls that a model with a plan refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import Lock
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compiled
from tpcal.plans.images import encoded


class LayerHooks:
    """Pre-hooks on all decoder layers. They are removed while no pass needs them, to save the
    calls.

    Args:
        layers: The decoder layers, in order.
        hook: Makes the pre-hook, with keyword arguments, of the layer with a number.
    """

    def __init__(self, layers: nn.ModuleList, hook: Callable[[int], Callable[..., Any]]) -> None:
        self._layers = layers
        self._hook = hook
        self._present: list[RemovableHandle] = []
        self._needing: WeakSet[object] = WeakSet()
        self._lock = Lock()

    def prepare(self, run: object, *, needed: bool) -> None:
        """Registers the hooks, before the layers' other hooks, if a pass needs them.

        Otherwise they are removed, unless another pass needs them.

        Args:
            run: The pass.
            needed: Whether it needs them, until `spare` is called.
        """
        if not needed and not self._present:
            return
        with self._lock:
            if needed:
                self._needing.add(run)
            self._set(bool(self._needing))

    def spare(self, run: object) -> None:
        """Says that a pass does not need the hooks any more; the next one may."""
        self._needing.discard(run)

    def remove(self) -> None:
        """Removes the hooks."""
        with self._lock:
            self._set(False)

    def _set(self, needed: bool) -> None:
        if needed == bool(self._present):
            return
        for hook in self._present:
            hook.remove()
        self._present = [
            layer.register_forward_pre_hook(
                compiled.outside(self._hook(at)), with_kwargs=True, prepend=True
            )
            for at, layer in enumerate(self._layers if needed else ())
        ]


def refuse_copies(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Lets copying and pickling of the modules raise UsageError until ``undo`` is closed."""
    for module in modules:
        encoded.exchange(module, "__reduce_ex__", _refuse_copy, undo)


def refuse_chunks(model: PreTrainedModel, undo: ExitStack) -> None:
    """Lets `generate` with chunked prefill raise UsageError until ``undo`` is closed.

    In chunks, tokens would be chosen before the model has read the question, without any error.
    """
    prefill = getattr(model, "_prefill", None)
    if prefill is None or "_prefill" in vars(model):
        return

    def whole_prefill(input_ids: Tensor, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        if generation_config.prefill_chunk_size is not None:
            raise UsageError(
                "prefill_chunk_size must be None to run a plan, as the whole prompt decides which "
                f"visual tokens stay; got {generation_config.prefill_chunk_size}."
            )
        return prefill(input_ids, generation_config, *args, **kwargs)

    model._prefill = whole_prefill
    undo.callback(delattr, model, "_prefill")


def refuse_training(decoder: nn.Module) -> None:
    """Raises UsageError if the decoder is in training mode."""
    if decoder.training:
        raise UsageError("The model must be in evaluation mode to run a plan; call model.eval().")


def _refuse_copy(protocol: object) -> Any:
    raise UsageError(
        "A model with a plan cannot be copied or pickled, as the copy would run on the original's "
        "plan. Call remove(), copy the model, and apply the plan to each."
    )
