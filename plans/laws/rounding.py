"""The effect of rounding on logits, measured on the given model and machine.

A law compares two ways to compute the same logits: with a cache or without, in a batch or alone,
with a token left out or hidden. These add the same numbers in different orders, which also depend
on the processor and on the lengths. Monte Carlo arithmetic measures the effect: the unpruned model
runs again, and every output of its modules is changed at random by at most half a step of its
precision, to which it was rounded, plus half a step of float32, in which sums are computed. A
different order of additions changes an output by about as much, whatever kernel computes it, so
that the logits respond similarly. The response is larger for models that amplify small differences
(norms of small states, experts). A pruned run uses the same modules as the unpruned one, so that
the same measurement bounds its rounding.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA, 1997. Here the outputs of modules are changed
instead of those of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tpcal.plans.laws.outcomes import Broken

# In the tiny models, two orders of sums differ by at most 1.5 times the measured effect.
_TIMES = 4.0
_N_RUNS = 3  # the median counts, because in one run two experts may change places


def allowed(
    model: nn.Module, run: Callable[[], Tensor], seen: Callable[[], float] | None = None
) -> float:
    """Largest difference of logits that is attributed to rounding.

    It is four times the measured effect of rounding, and at least one step of the largest logit.
    In half precision nearly all sums round to the same number in any order, so that the limit is
    smaller: four times the observed effect of another order.

    Args:
        model: The model without a plan, or with a plan that selects by position, because rounding
            must not change the selection.
        run: Function that returns the logits without those of padding, equal each time except for
            rounding.
        seen: Function that returns a difference that another order of sums caused in this model.
            It is called in half precision only. The difference may be too large, if it has other
            causes too.
    """
    logits = run()
    eps = torch.finfo(logits.dtype).eps
    moved = _moved(model, run, logits)
    if seen is not None and eps > torch.finfo(torch.float32).eps:
        moved = min(moved, seen())
    return max(_TIMES * moved, eps * float(logits.abs().max()))


def is_coarse(device: torch.device) -> bool:
    """Whether a device may multiply float32 in a format of fewer bits, as a GPU does in TF32."""
    if device.type != "cuda":
        return device.type != "cpu"
    # Torch's older settings for TF32 change these too.
    backends: Any = torch.backends
    precisions = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    return "tf32" in precisions


def distance(one: Tensor, two: Tensor) -> float:
    """Largest absolute difference; nan if either contains nan, 0 between empty tensors.

    Raises:
        Broken: The shapes differ.
    """
    if one.shape != two.shape:
        raise Broken(f"shapes differ: {tuple(one.shape)} and {tuple(two.shape)}")
    if not one.numel():
        return 0.0
    exact = torch.promote_types(torch.promote_types(one.dtype, two.dtype), torch.float32)
    return float((one.to(exact) - two.to(exact)).abs().max())


@contextmanager
def nudging(model: nn.Module, seed: int) -> Iterator[None]:
    """The model with every output of its modules changed at random, as rounding may change it.

    The state of the caller's random number generator is not changed.
    """

    def nudge(given: Any) -> Any:
        if isinstance(given, Tensor) and given.is_floating_point():
            chance = 2 * torch.rand_like(given) - 1
            step = (torch.finfo(given.dtype).eps + torch.finfo(torch.float32).eps) / 2
            return given + step * given * chance
        return tuple(map(nudge, given)) if type(given) is tuple else given

    innermost = [module for module in model.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(lambda *call: nudge(call[-1])) for module in innermost]
    devices = {weight.device for weight in model.parameters() if weight.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)):
            torch.manual_seed(seed)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _moved(model: nn.Module, run: Callable[[], Tensor], logits: Tensor) -> float:
    """Largest change of a logit, the median over several nudged runs."""
    found = []
    for seed in range(_N_RUNS):
        with nudging(model, seed):
            found.append(distance(run(), logits))
    return median(found)
