"""Low-rank adapters for the linear layers of a frozen decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel

from tpcal.calibrate.smol.assemble import SCALE


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a trained product of two narrow matrices.

    Source:
        Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        start = torch.randn(rank, base.in_features) / math.sqrt(base.in_features)
        self.down = nn.Parameter(start)  # [rank, in]
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output plus the adapter's, which is zero before training."""
        return self.base(x) + F.linear(F.linear(x, self.down), self.up * SCALE)


def add_adapters(decoder: LlamaModel, rank: int, seed: int) -> None:
    """Freezes a decoder and puts an adapter on every linear layer of its decoder layers."""
    torch.manual_seed(seed)
    decoder.requires_grad_(False)
    linears = [(n, m) for n, m in decoder.layers.named_modules() if isinstance(m, nn.Linear)]
    for name, base in linears:
        parent, _, own = name.rpartition(".")
        setattr(decoder.layers.get_submodule(parent), own, LowRankLinear(base, rank))


def adapters(decoder: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """The adapters with their layers' names, such as ``layers.0.self_attn.q_proj``."""
    for name, module in decoder.named_modules():
        if isinstance(module, LowRankLinear):
            yield name, module
