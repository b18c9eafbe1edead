"""sparsevlm: keep the tokens that the words about the image attend to (SparseVLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors.base import ScoredSelector, Tokens, Work, counts_of, pair_flops


@dataclass(frozen=True)
class Sparsevlm(ScoredSelector):
    """Scores a token by the mean attention of the raters: text tokens that resemble the image.

    Each visual token h_i is distributed over the text tokens t_j by the softmax over j of
    h_i . t_j / sqrt(D). The raters are the text tokens whose mean share over all visual tokens is
    at least the average share. The score of a visual token is the attention it receives, averaged
    over raters and heads.

    Needs:   text, text_scores
    Cost:    O(B N T D) for the raters, and T query rows of attention besides the model's kernel
    Source:  Zhang et al. 2024, arXiv 2410.04417 (SparseVLM). The paper chooses raters once, by the
             input embeddings; tpcal chooses them at each cut by the states there, with products
             divided by sqrt(D) because states have larger norms than embeddings. The plan sets the
             number of tokens; the paper also scales it by the rank of the attention. Pruned tokens
             are not merged into new ones.
    """

    required: ClassVar[frozenset[str]] = frozenset({"text", "text_scores"})

    def flops(self, work: Work) -> float:
        """FLOPs of the products of every visual token with every text token."""
        return pair_flops(work.n_text, work)

    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] mean attention of the raters; 0 in rows without text."""
        attention = tokens.text_attention
        assert attention is not None, "text_scores were not provided"
        wide = torch.promote_types(attention.dtype, torch.float32)
        result = torch.zeros_like(tokens.valid, dtype=wide)
        assert tokens.text_valid is not None
        counts, rating = counts_of(tokens, tokens.n_original), raters(tokens)
        places, texts = counts.places(tokens.valid), counts.text_places(tokens.text_valid)
        # score_i = mean over raters j of A_ji, where A is the attention of the text tokens as
        # queries, already averaged over heads. The raters are a mask, so that nobody has to wait
        # for their number.
        for b, (at, said) in enumerate(zip(places, texts, strict=True)):
            rates = rating[b, said]
            if len(rates):
                looks = attention[b, said][:, at].double().where(rates[:, None], 0)
                result[b, at] = (looks.sum(0) / rates.sum().clamp(min=1)).to(wide)
        return result


def raters(tokens: Tokens) -> Tensor:
    """[B, T] bool: text tokens whose share of the image is at least the average share."""
    assert tokens.text_hidden is not None
    assert tokens.text_valid is not None
    result = torch.zeros_like(tokens.text_valid)
    counts = counts_of(tokens, tokens.n_original)
    images, texts = counts.places(tokens.valid), counts.text_places(tokens.text_valid)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    for b, (at, said) in enumerate(zip(images, texts, strict=True)):
        image, text = (x.to(wide) for x in (tokens.hidden[b][at], tokens.text_hidden[b][said]))
        if len(image) and len(text):
            # R_ij = softmax over j of h_i . t_j / sqrt(D) sums to 1 over the text for each visual
            # token i. share_j = mean over i of R_ij; j is a rater if share_j >= mean of shares.
            products = image @ (text / text.shape[-1] ** 0.5).mT  # [N, T]
            share = products.softmax(-1).mean(0)
            # The tolerance makes all text tokens raters if their shares differ by rounding only.
            result[b, said] = share >= share.mean() * (1 - 1e-6)
    return result
