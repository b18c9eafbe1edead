"""sparsevlm: keep what the words that speak of the image look at (SparseVLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import real_places
from tpcal.plans.selectors.base import ScoredSelector, Tokens, Work, pair_flops


@dataclass(frozen=True)
class Sparsevlm(ScoredSelector):
    """Scores a token by the attention of the raters: text tokens that resemble the image.

    The prompt's text tokens share every visual token between them, by the softmax of the products
    of their states; those that get more than the average of the image are the raters. The score
    is their mean attention, over raters and heads.

    Needs:   text, text_scores
    Cost:    O(B N T D) for the raters, and T query rows of attention beside the kernel
    Source:  Zhang et al. 2024, arXiv 2410.04417 (SparseVLM). There raters are chosen once, by the
             input embeddings; ours by the states at each cut, with products divided by sqrt(D), as
             states are longer. How many tokens leave is the plan's; the paper also scales it by
             the rank of the attention. What leaves is not merged into new tokens.
    """

    required: ClassVar[frozenset[str]] = frozenset({"text", "text_scores"})

    def flops(self, work: Work) -> float:
        """Every token with all of the text."""
        return pair_flops(work.n_text, work)

    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] mean attention of the raters; 0 without text."""
        attention = tokens.text_attention
        assert attention is not None, "text_scores were not provided"
        wide = torch.promote_types(attention.dtype, torch.float32)
        result = torch.zeros_like(tokens.valid, dtype=wide)
        places = real_places(tokens.valid)
        for b, (at, rates) in enumerate(zip(places, raters(tokens), strict=True)):
            if rates.any():
                result[b, at] = attention[b, rates][:, at].to(wide).mean(0)
        return result


def raters(tokens: Tokens) -> Tensor:
    """[B, T] bool: text tokens whose share of the image is above the average one."""
    assert tokens.text_hidden is not None
    assert tokens.text_valid is not None
    result = torch.zeros_like(tokens.text_valid)
    images, texts = real_places(tokens.valid), real_places(tokens.text_valid)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    for b, (at, said) in enumerate(zip(images, texts, strict=True)):
        image, text = tokens.hidden[b][at], tokens.text_hidden[b][said]
        if len(image) and len(text):
            products = (image @ (text / text.shape[-1] ** 0.5).mT).to(wide)  # [N, T]
            share = products.softmax(-1).mean(0)
            result[b, said] = share >= share.mean() * (1 - 1e-6)  # equal shares: all of them
    return result
