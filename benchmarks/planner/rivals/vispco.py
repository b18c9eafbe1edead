"""VisPCO: a kernel over the layers, whose parameters follow the gradient of the loss.

Source:
    Ji et al. 2026, VisPCO: Visual Token Pruning Configuration Optimization via Budget-Aware
    Pareto-Frontier Learning for Vision-Language Models (arXiv 2604.15188v1), of which the abstract
    was read, and their code (github.com/JHW5981/VisPCO).

As there, tokens are hidden by masks in training, a straight-through estimator gives the loss a
gradient in the kernel's parameters, and an augmented Lagrangian keeps the budget. It differs from
the published method in seven points. The parameters are the same for all samples and found for one
budget; theirs come from a network that reads the prompt and the budget, trained on 10,000 samples.
The kernel is the step of their code, and the same with a slope that is learned. It begins at a
height that is learned, too; theirs begins at 1, which would leave no choice where layer 0, which
gets all tokens, takes most of the budget. Of both kernels after every epoch, the one with the
smallest measured loss is taken. The estimator is a sigmoid of the token's rank instead of its
attention, a hidden token is ranked by what it would get, and long gradients of the loss are cut to
length 1. The budget is a layer average of keep instead of FLOPs, and the last step onto it is one
factor for all layers. The multiplier of the augmented Lagrangian follows the excess, as usual; in
their code it is constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.planner import world
from benchmarks.planner.rivals.relaxed import Relaxed
from benchmarks.planner.rivals.schedule import ATTENTION, Calibration, Counts, largest, within

N_EPOCHS = 8
BATCH = 14
"""One sample of each group."""
RATE = 0.1
"""Of Adam, for the kernel's parameters."""
STEP, RAMP = 10.0, 1.0
"""Slopes per layer: of the step, and of the other kernel at first."""
PENALTY = 20.0
"""Nats by which half the squared excess over the budget is multiplied."""


def plan(given: Calibration) -> Counts:
    """The counts of the best kernel.

    Raises:
        ValueError: The selector ranks tokens by something else than attention.
    """
    if given.selector != ATTENTION:
        raise ValueError(f"VisPCO's gradient needs ranks by attention; got {given.selector}.")
    relaxed = Relaxed(world.samples(world.CALIBRATION, given.n, given.seed), BATCH)
    given.passes += given.n
    found = [*_searched(given, relaxed, STEP, False), *_searched(given, relaxed, RAMP, True)]
    return min(found, key=given.loss)


def kernel(parameters: Tensor, n_layers: int) -> Tensor:
    """[L] shares: 1 in layer 0, then a height that falls to a part of itself around a depth.

    Args:
        parameters: [4] logits of the height, of the part that is left, and of the depth as a share
            of the layers, and logarithm of the slope per layer.
        n_layers: Number of layers, L.
    """
    height, left, depth = torch.sigmoid(parameters[:3])
    falling = parameters[3].exp() * (torch.arange(n_layers) - depth * n_layers)
    shares = height * (1 + (left - 1) * torch.sigmoid(falling))
    return torch.where(torch.arange(n_layers) > 0, shares, 1.0)


def _searched(given: Calibration, relaxed: Relaxed, slope: float, learned: bool) -> list[Counts]:
    """The counts after every epoch of a search; ``learned``: the slope is searched, too."""
    # At first, half of the height is left halfway down, and the budget is met.
    even = (given.target * given.n_layers - 1) / (given.n_layers - 1)
    start = torch.logit(torch.tensor([min(even / 0.75, 0.95), 0.5, 0.5])).tolist()
    parameters = torch.tensor([*start, math.log(slope)], requires_grad=True)
    free = torch.tensor([1.0, 1.0, 1.0, float(learned)])
    optimiser = torch.optim.Adam([parameters], lr=RATE)
    multiplier, found = 0.0, []
    for _ in range(N_EPOCHS):
        for batch in range(len(relaxed)):
            shares = kernel(parameters, given.n_layers)
            (slopes,) = torch.autograd.grad(relaxed.loss(batch, shares), parameters)
            excess = kernel(parameters, given.n_layers).mean() - given.target
            cost = multiplier * excess + PENALTY / 2 * excess**2
            (pull,) = torch.autograd.grad(cost, parameters)
            parameters.grad = free * (slopes / slopes.norm().clamp(min=1) + pull)
            optimiser.step()
        given.passes += 2 * given.n  # every layer has all tokens, seen or not
        shares = kernel(parameters, given.n_layers).detach()
        multiplier += PENALTY * (shares.mean().item() - given.target)
        found.append(_counts(given, shares))
    return found


def _counts(given: Calibration, shares: Tensor) -> Counts:
    """The shares of all layers after the first by the largest factor that the budget allows."""
    found = shares.double().numpy()
    return largest(lambda factor: within(factor * found, given), given, 1 / found.min())
