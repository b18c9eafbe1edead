"""How far rounding alone moves logits, measured on the model and the machine at hand.

A law compares two ways to compute the same logits: on a cache or without, in a batch or alone, a
token left out or hidden. They add the same numbers in another order, and processors differ in the
orders they choose; so does one processor between lengths. What that changes is measured by Monte
Carlo arithmetic: the unpruned model runs again, and every number that one of its modules gives is
moved by chance, by at most half a step of its precision, as it was rounded to it, and half a step
of float32, in which sums are taken. A sum in another order moves the number by about as much,
whatever kernel takes it; so the logits answer to both alike, and those of a model that makes much
of small differences (norms of small states, experts) more than those of another. A pruned run
goes through the same modules as the unpruned one, so the same measure bounds its rounding.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA, 1997; here after modules, not operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tpcal.plans.laws.verdict import Broken

_TIMES = 4.0  # what two orders of sums change in the tiny models is at most 1.5 times the measure
_N_RUNS = 3  # of which the middle one counts: in one of them, two experts may change places


def allowed(
    model: nn.Module, run: Callable[[], Tensor], seen: Callable[[], float] | None = None
) -> float:
    """Largest difference of logits that counts as none.

    Four times what rounding moves, and at least one step of the largest logit. In half precision
    nearly every sum is rounded to the same number in whatever order it was taken, so less than
    that is allowed: four times what another order was seen to change.

    Args:
        model: The model without a plan, or with one that chooses by place, as rounding must not
            turn a choice.
        run: Gives its logits, the same every time but for rounding; without those of padding.
        seen: Gives a difference that another order of sums made in this model; nothing but half
            precision asks for it. It may be too large, where the model did something else too.
    """
    logits = run()
    eps = torch.finfo(logits.dtype).eps
    moved = _moved(model, run, logits)
    if seen is not None and eps > torch.finfo(torch.float32).eps:
        moved = min(moved, seen())
    return max(_TIMES * moved, eps * float(logits.abs().max()))


def distance(one: Tensor, two: Tensor) -> float:
    """Largest difference; nan where there is one in either, 0 between nothing and nothing.

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
    """The model with every number that a module gives moved by chance, as rounding may move it.

    The random numbers of the caller stay what they would be without.
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
    """Largest change of a logit in the middle one of several nudged runs."""
    found = []
    for seed in range(_N_RUNS):
        with nudging(model, seed):
            found.append(distance(run(), logits))
    return median(found)
