"""Runs plans on models that are compiled by torch.compile.

Hooks and pruned caches stay outside of graphs, because torch would compile them again for every
length and step. The parts of each layer between them are compiled once for a fixed length and once
for any length, so new prompts need no new graphs. Every layer needs graphs of its own, and torch
stops compiling beyond a number of graphs that is too small for most models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch._dynamo.decorators import skip

_LOG = logging.getLogger(__name__)
_PER_LAYER = 4  # graphs of one function: fixed and any length, prefill and decode


def outside(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, kept out of graphs together with all that it calls."""
    return torch.compiler.disable(hook)


def around(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, kept out of graphs; what it calls may still be compiled."""
    return skip(call)


def bound(modules: Iterable[nn.Module], n_layers: int, undo: ExitStack) -> None:
    """Runs compiled modules without their graphs if torch would stop compiling half way.

    Args:
        modules: The model and its parts, down to the layers.
        n_layers: Number of decoder layers.
        undo: Gives the modules their graphs back when closed.
    """
    compiled = [module for module in modules if module._compiled_call_impl is not None]
    needed, limit = _PER_LAYER * n_layers, torch._dynamo.config.recompile_limit
    if not compiled or limit >= needed:
        return
    _LOG.warning(
        "While a plan is applied the model runs without torch.compile, which needs up to %d "
        "graphs of one function for %d layers and stops at %d. To compile, set "
        "torch._dynamo.config.recompile_limit = %d before.",
        needed,
        n_layers,
        limit,
        needed,
    )
    for module in compiled:
        undo.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
        module._compiled_call_impl = None
