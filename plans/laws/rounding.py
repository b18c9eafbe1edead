"""How far rounding alone moves logits: measured on the model at hand, so no machine sets the bound.

A law compares two ways to compute the same logits: on a cache or without, in a batch or alone, a
token left out or hidden. They add the same numbers in another order, and processors differ in the
orders they choose; so does one processor between lengths. What that changes is measured by Monte
Carlo arithmetic: the unpruned model runs again, and every number that one of its modules gives is
moved by chance, by at most one step of its precision. A sum in another order moves the number by
about as much, wherever it is added and by whatever kernel; so the logits of both answer alike, a
model that makes much of small differences (norms of small states, experts) more than another. A
pruned run goes through no other modules than the unpruned one, and each row of it through no more
of them: its rounding is bounded by the same measure.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA 1997; here after each module, not each operation.
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


def allowed(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """Largest difference of logits that counts as none.

    Four times what rounding moves, and at least one step of the largest logit.

    Args:
        model: The model without a plan, or with one that chooses by place, as rounding must not
            turn a choice.
        run: Gives its logits, the same every time but for rounding; without those of padding.
    """
    logits = run()
    step = torch.finfo(logits.dtype).eps * float(logits.abs().max())
    return max(_TIMES * _moved(model, run, logits), step)


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
    """The model with every number that a module gives moved by chance, by one step at most.

    The random numbers of the caller stay what they would be without.
    """

    def nudge(given: Any) -> Any:
        if isinstance(given, Tensor) and given.is_floating_point():
            chance = 2 * torch.rand_like(given) - 1
            return given + torch.finfo(given.dtype).eps * given * chance
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
