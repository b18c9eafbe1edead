"""The processes of tensor parallelism: what each has of the attention heads, put together.

Every process holds the states of all tokens, and the queries and keys of its own heads only. All
must drop the same tokens, because they add up their shares of the same token's state. Process r of
n has the r-th part of the heads, so that parts side by side are in the model's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def _own(part: Tensor, dim: int) -> Tensor:
    return part


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Ranks:
    """The processes that share the heads. All of them make the same calls in the same order."""

    n: int = 1
    """Number of them."""
    n_copies: int = 1
    """Number of neighbouring processes that have the same key head, where these are too few."""
    gathered: Callable[[Tensor, int], Tensor] = _own
    """Gives the tensors of all processes, side by side along a dimension."""
    from_first: Callable[[Tensor], Tensor] = _same
    """Gives the first process's uint8 tensor."""

    def heads(self, part: Tensor, dim: int) -> Tensor:
        """What was computed for each head, for all heads.

        Args:
            part: The same for the heads of this process.
            dim: The dimension that counts heads.
        """
        return part if self.n == 1 else self.gathered(part.contiguous(), dim)

    def keys(self, part: Tensor) -> Tensor:
        """[..., Hkv d] the keys of all heads.

        Args:
            part: [..., h d] the keys of the h key heads of this process.
        """
        parts = self.heads(part[..., None, :], part.ndim - 1)  # [..., n, h d]
        return parts[..., :: self.n_copies, :].flatten(-2)

    def mean(self, part: Tensor) -> Tensor:
        """The mean over all heads, in the shape of ``part``, the mean over this process's."""
        return part if self.n == 1 else self.heads(part[None], 0).mean(dim=0)

    def agreed(self, values: Tensor) -> Tensor:
        """The first process's values.

        Devices need not round alike, and two tokens may be nearly equal, so that processes could
        choose different ones, or merge a token into different ones. Then some would add a token's
        state to that of another, without a sign. A choice is one byte for each visual token, and
        reaches the host anyway.

        Args:
            values: [...] of this process.
        """
        if self.n == 1:
            return values
        return self.from_first(values.contiguous().view(torch.uint8)).view(values.dtype)


ALONE = Ranks()
"""A process that has all heads."""
