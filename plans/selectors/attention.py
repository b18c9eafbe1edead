"""attention: keep the tokens that the last prompt token attends to most."""

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
    Cost:    O(B H N) in addition to the one query row that the executor recomputes
    Source:  Chen et al. 2024, arXiv 2403.06764 (FastV). Xing et al. 2024, arXiv 2410.17247
             (PyramidDrop) uses the projections of the layer after the cut; tpcal uses those of the
             layer before it. Li et al. 2025, arXiv 2505.22038 (BTP), last stage.
    """

    required: ClassVar[frozenset[str]] = frozenset({"scores"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"score": ("softmax", "raw")}

    score: str = choice("softmax", "raw")
    """Mean over heads of the attention weights (``softmax``) or of the logits (``raw``)."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        return top_mask(attention_scores(tokens, self.score), tokens.valid, n_keep)


def attention_scores(tokens: Tokens, score: str) -> Tensor:
    """[B, N] mean over heads of the last query's weights (``softmax``) or logits (``raw``).

    With logits s_hi = q_h . k_hi / sqrt(d), the weight of key i in head h is
    exp(s_hi - logsumexp_j s_hj), where j runs over all keys that the query sees, text included.
    """
    logits, lse = tokens.logits, tokens.lse
    assert logits is not None, "scores were not provided"
    values = scored(logits, logits)
    if score == "softmax":
        assert lse is not None, "scores were not provided"
        values = (values - scored(lse, logits)[..., None]).exp()
    return values.mean(dim=1)
