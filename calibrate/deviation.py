"""Distances of a pruned run from the unpruned one: of one layer's output, and of the answer."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """[B, A, V] natural logs in float32, whatever the model's precision."""
    return torch.log_softmax(logits.float(), dim=-1)


def answer_deviation(full: Tensor, pruned: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Global deviation of each row: KL(full || pruned), and whether the answer changes.

    An answer changes if the likeliest token changes at any of its positions; the end of text after
    the last token is one of them. If the answer is the unpruned model's own greedy answer, this is
    exact: greedy decoding with the pruned model gives the same answer if and only if no token
    changes. If the answer comes from the data and the unpruned model would not give it, a change
    says that the model, led along that answer, would continue differently at some position;
    docs/certificates.md compares this with answers that are really generated.

    Args:
        full: [B, A, V] log-probabilities of the unpruned run.
        pruned: [B, A, V] log-probabilities of the pruned run.
        valid: [B, A] which of the A distributions belong to the row's answer.

    Returns:
        [B] nats, means over the row's answer positions, and [B] 1 if the answer changes, else 0.

    Source:
        The final-output form of BTP's global objective (arXiv 2505.22038, eq. 6 sums layer outputs
        instead). It uses all positions of the answer, because the first one alone misses the
        failures of VTW (arXiv 2405.05803) on longer answers.
    """
    # KL(p || q) = sum over v of p[v] * (log p[v] - log q[v]) at each of the A positions, where p
    # is the unpruned distribution and q the pruned one.
    kl = (full.exp() * (full - pruned)).sum(dim=-1).clamp_min(0)  # rounding can go below 0
    # A flip at any valid position changes the answer; the KL is averaged over valid positions.
    flips = (full.argmax(dim=-1) != pruned.argmax(dim=-1)) & valid
    return _row_mean(kl, valid), flips.any(dim=1).float()


def local_deviation(pruned: Tensor, full: Tensor, where: Tensor) -> Tensor:
    """[B] relative L2 distance of a layer's output, averaged over the positions ``where``.

    Args:
        pruned: [B, S, D] output of the layer with fewer tokens.
        full: [B, S, D] output of the layer with all tokens.
        where: [B, S] positions that are in both runs and can differ. A row without any gets 0.

    Source:
        BTP's local objective (arXiv 2505.22038, eq. 5), which leaves the distance open.
    """
    # d[s] = ||pruned[s] - full[s]|| / ||full[s]||; the smallest normal number guards against 0.
    reference = full.float()
    distance = torch.linalg.vector_norm(pruned.float() - reference, dim=-1)
    size = torch.linalg.vector_norm(reference, dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return _row_mean(distance / size, where)


def text_after_images(text: Tensor, visual: Tensor) -> Tensor:
    """[B, S] text positions after the row's first visual token, which a cut can change.

    Earlier positions cannot: under a causal mask they do not see any visual token.

    Args:
        text: [B, S] real text tokens.
        visual: [B, S] visual tokens.
    """
    return text & (visual.int().cumsum(dim=1) > 0)


def _row_mean(values: Tensor, valid: Tensor) -> Tensor:
    kept = values.masked_fill(~valid, 0.0)  # filler may hold inf or nan
    return kept.sum(dim=1) / valid.sum(dim=1).clamp_min(1)
