"""Muon for a small model: matrices of one shape are orthogonalised together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class BatchedMuon(torch.optim.Optimizer):
    """Momentum, then the nearest half-orthogonal matrix as the step.

    ``torch.optim.Muon`` does the same one matrix at a time; batched, it is far fewer operations.

    Source: Jordan et al., "Muon", 2024 (kellerjordan.github.io/posts/muon): quintic Newton-Schulz,
        five rounds, Nesterov momentum. Step scaled by 0.2 sqrt(longer side) after Liu et al.,
        arXiv 2502.16982, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for same in alike.values():
                self._update(same, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        momentum, lr = group["momentum"], group["lr"]
        pushes = []
        for p in params:
            state = self.state[p]
            if "buffer" not in state:
                state["buffer"] = torch.zeros_like(p)
            assert p.grad is not None
            state["buffer"].lerp_(p.grad, 1 - momentum)
            pushes.append(p.grad.lerp(state["buffer"], momentum))
        updates = orthogonalise(torch.stack(pushes))
        scale = 0.2 * max(params[0].shape) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(update.to(p.dtype), alpha=-lr * scale)


def orthogonalise(stack: Tensor, rounds: int = 5) -> Tensor:
    """[n, rows, columns] each matrix with its singular values pushed to about 1; in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
