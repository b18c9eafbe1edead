"""attention: keep what the last prompt token looks at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tpcal.plans.selectors.base import Selector, Tokens, choice, scored, top_mask


@dataclass(frozen=True)
class Attention(Selector):
    """Scores a token by the attention of the last prompt token, averaged over heads.

    Needs:   scores
    Cost:    O(B H N) beside the one query row the executor recomputes
    Source:  Chen et al. 2024, arXiv 2403.06764 (FastV). Xing et al. 2024, arXiv 2410.17247
             (PyramidDrop) takes the projections of the layer after the cut, we those before it.
             Li et al. 2025, arXiv 2505.22038 (BTP), last stage.
    """

    required: ClassVar[frozenset[str]] = frozenset({"scores"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"score": ("softmax", "raw")}

    score: str = choice("softmax", "raw")
    """Head mean of the weights (``softmax``) or of the logits before the softmax (``raw``)."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        return top_mask(attention_scores(tokens, self.score), tokens.valid, n_keep)


def attention_scores(tokens: Tokens, score: str) -> Tensor:
    """[B, N] head mean of the last query's weights (``softmax``) or logits (``raw``)."""
    logits, lse = tokens.logits, tokens.lse
    assert logits is not None, "scores were not provided"
    values = scored(logits, logits)
    if score == "softmax":
        assert lse is not None, "scores were not provided"
        values = (values - scored(lse, logits)[..., None]).exp()
    return values.mean(dim=1)
