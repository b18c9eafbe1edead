"""VisPCO: a kernel over the layers, whose parameters follow the gradient of the loss.

Source:
    Ji et al. 2026, VisPCO: Visual Token Pruning Configuration Optimization via Budget-Aware
    Pareto-Frontier Learning for Vision-Language Models (arXiv 2604.15188v1), of which the abstract
    was read, and their code (github.com/JHW5981/VisPCO).

As there, tokens are hidden by masks in training, a straight-through estimator gives the loss a
gradient in the kernel's parameters, and an augmented Lagrangian keeps the budget. It differs from
the published method in five points. The parameters are the same for all samples and found for one
budget; theirs come from a network that reads the prompt and the budget, trained on 10,000 samples.
The kernel is that of their code, a step of which depth and height are learned, and the same with a
slope that is learned, too; the one with the smaller measured loss is taken. The estimator is a
sigmoid of the token's rank instead of its attention. The budget is a layer average of keep instead
of FLOPs, and the last step onto it is one factor for all layers. Multiplier and penalty grow as
usual for augmented Lagrangians; in their code both are constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.planner import world
from benchmarks.planner.rivals.relaxed import Relaxed
from benchmarks.planner.rivals.schedule import ATTENTION, Calibration, Counts, largest, within

N_EPOCHS = 10
BATCH = 14
"""One sample of each group."""
RATE = 0.1
"""Of Adam, for the logits of depth and height and the logarithm of the slope."""
STEP_SLOPE, FIRST_SLOPE = 10.0, 2.0
"""Of the step, and of the other kernel at first, per layer."""
FIRST_PENALTY = 10.0
"""Nats by which half the squared excess over the budget is multiplied in the first epoch."""


def plan(given: Calibration) -> Counts:
    """The counts of the better kernel.

    Raises:
        ValueError: The selector ranks tokens by something else than attention.
    """
    if given.selector != ATTENTION:
        raise ValueError(f"VisPCO's gradient needs ranks by attention; got {given.selector}.")
    relaxed = Relaxed(world.samples(world.CALIBRATION, given.n, given.seed), BATCH)
    given.passes += given.n
    found = [_searched(given, relaxed, learned) for learned in (False, True)]
    return min(found, key=given.loss)


def kernel(parameters: Tensor, n_layers: int) -> Tensor:
    """[L] shares: 1 before a depth and a smaller height after it, with a slope between.

    Args:
        parameters: [3] logit of the depth as a share of the layers, logit of the height, and
            logarithm of the slope per layer.
        n_layers: Number of layers, L.
    """
    depth, height = torch.sigmoid(parameters[:2])
    falling = parameters[2].exp() * (torch.arange(n_layers) - depth * n_layers)
    shares = 1 + (height - 1) * torch.sigmoid(falling)
    return torch.where(torch.arange(n_layers) > 0, shares, 1.0)


def _searched(given: Calibration, relaxed: Relaxed, learned: bool) -> Counts:
    """The counts that a search over one kernel ends with; ``learned``: its slope is, too."""
    slope = FIRST_SLOPE if learned else STEP_SLOPE
    start = [torch.logit(torch.tensor(given.target)).item()] * 2
    parameters = torch.tensor([*start, math.log(slope)], requires_grad=True)
    optimiser = torch.optim.Adam([parameters], lr=RATE)
    multiplier, penalty, before = 0.0, FIRST_PENALTY, math.inf
    for _ in range(N_EPOCHS):
        for batch in range(len(relaxed)):
            shares = kernel(parameters, given.n_layers)
            excess = shares.mean() - given.target
            loss = relaxed.loss(batch, shares) + multiplier * excess + penalty / 2 * excess**2
            (gradient,) = torch.autograd.grad(loss, parameters)
            parameters.grad = gradient * torch.tensor([1.0, 1.0, float(learned)])
            optimiser.step()
        given.passes += 2 * given.n  # every layer has all tokens, seen or not
        left = float(kernel(parameters, given.n_layers).mean()) - given.target
        multiplier += penalty * left
        penalty *= 2 if abs(left) > before / 2 else 1
        before = abs(left)
    return _counts(given, kernel(parameters, given.n_layers).detach())


def _counts(given: Calibration, shares: Tensor) -> Counts:
    """The shares of all layers after the first by the largest factor that the budget allows."""
    found = shares.double().numpy()
    return largest(lambda factor: within(factor * found, given), given, 1 / found.min())
