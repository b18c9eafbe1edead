"""What selectors learn from the question: its states, and the attention of the layer before a cut.

A prompt whose selectors look at the question enters its first cut as a whole, so that its tokens
stand side by side in the row when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tpcal.integrations.vllm.ranks import ALONE, Ranks
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.executor.attention_reader import (
    Capture,
    Request,
    Softmax,
    read,
    warn_out_of_sight,
)
from tpcal.plans.executor.masks import FlashOrder
from tpcal.plans.selectors.base import Tokens


@dataclass(frozen=True)
class PromptColumns:
    """A prompt that is wholly in the row, except for what earlier cuts dropped."""

    first: int
    """Column of its first token; the others follow."""
    places: np.ndarray
    """[n] int64 places of its tokens that are still there, up to the prompt's last token."""
    spans: tuple[Span, ...]
    """Its images."""

    @property
    def text(self) -> np.ndarray:
        """[T] int64 which of the n tokens are text after the first visual token."""
        visual = np.isin(self.places, np.concatenate([span.places for span in self.spans]))
        return np.flatnonzero(~visual & (self.places > self.spans[0].start))

    @property
    def n_behind(self) -> int:
        """How many places its last token stands behind its first visual token."""
        return int(self.places[-1]) - self.spans[0].start


@dataclass(frozen=True)
class AttentionShape:
    """How an attention module computes its scores, with the heads that its process has."""

    n_heads: int
    n_kv_heads: int
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    """[H] as in `Softmax`."""
    window: int | None = None
    """Number of positions that a query sees, its own included; None if it sees all."""

    def keys(self, rows: Tensor) -> Tensor:
        """[m, Hkv d] the keys in what was read of m tokens."""
        return rows[:, rows.shape[1] * self.n_heads // (self.n_heads + self.n_kv_heads) :]

    def capture(self, rows: Tensor, request: Request) -> Capture:
        """The scores of a prompt.

        Args:
            rows: [n, (H + Hkv) d] queries and keys of each token, side by side.
            request: What to read.
        """
        heads = rows.unflatten(1, (self.n_heads + self.n_kv_heads, -1)).transpose(0, 1)[None]
        query, key = heads.split((self.n_heads, self.n_kv_heads), dim=1)
        # The window counts rows, which have no gaps where it matters: a layer after a cut has no
        # window that a request outgrows.
        softmax = Softmax(self.scaling, self.softcap, self.sinks)
        return read(query, key, FlashOrder(None, self.window), softmax, request)


class QuestionReader:
    """Completes what a selector gets.

    Args:
        shapes: The attention of the layers before cuts that read it, by layer.
        final_norm: The decoder's final norm.
        ranks: The processes that share the heads.
    """

    def __init__(
        self,
        shapes: Mapping[int, AttentionShape],
        final_norm: Callable[[Tensor], Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._shapes = shapes
        self._final_norm = final_norm
        self._ranks = ranks

    def completed(
        self,
        tokens: Tokens,
        needs: frozenset[str],
        prompts: Sequence[PromptColumns],
        columns: Tensor,
        states: Tensor,
        rows: Tensor | None,
    ) -> Tokens:
        """The tokens with what else the selector needs.

        Args:
            tokens: The B images of a cut.
            needs: The selector's ``needs``.
            prompts: The prompt of each image; empty if no selector looks at the question.
            columns: [B, N] int64 column of each token.
            states: [m, D] states of all tokens that enter the layer.
            rows: [m, E] their queries and keys at the layer before; None if nothing reads them.
        """
        said = _text_columns(prompts, columns) if "text" in needs else None
        if said is not None:
            tokens = replace(tokens, text_hidden=states[said], text_valid=said >= 0)
            assert tokens.counts is not None
            n_text = tuple(len(prompt.text) for prompt in prompts)
            tokens = replace(tokens, counts=replace(tokens.counts, n_text=n_text))
        if "norm" in needs:
            tokens = replace(tokens, final_norm=self._final_norm)
        if rows is None:
            return tokens
        shape = self._shapes[tokens.layer - 1]
        if "keys" in needs:
            keys = shape.keys(rows)
            text_keys = None if said is None else self._ranks.keys(keys[said])
            tokens = replace(tokens, keys=self._ranks.keys(keys[columns]), text_keys=text_keys)
        if needs & {"scores", "text_scores"}:
            if shape.window is not None and max(p.n_behind for p in prompts) >= shape.window:
                warn_out_of_sight(tokens.layer - 1, shape.window)
            captures = [
                _capture(shape, rows, prompt, at[valid], "text_scores" in needs)
                for prompt, at, valid in zip(prompts, columns, tokens.valid, strict=True)
            ]
            tokens = _with_scores(tokens, captures, self._ranks)
        return tokens


def _text_columns(prompts: Sequence[PromptColumns], like: Tensor) -> Tensor:
    """[B, T] int64 column of each text token of the prompts; -1 is filler."""
    found = [torch.from_numpy(prompt.first + prompt.text) for prompt in prompts]
    return pad_sequence(found, batch_first=True, padding_value=-1).to(like.device)


def _capture(
    shape: AttentionShape, rows: Tensor, prompt: PromptColumns, columns: Tensor, text: bool
) -> tuple[Capture, Tensor]:
    """The scores of the last token, and [n] int64 where the image stands in its prompt."""
    n, at = len(prompt.places), columns - prompt.first
    request = Request(torch.tensor([n - 1], device=at.device))
    if text:
        said = torch.from_numpy(prompt.text).to(at.device)
        request = replace(request, text=_all_of(said), visual=_all_of(at))
    return shape.capture(rows[prompt.first : prompt.first + n], request), at


def _all_of(places: Tensor) -> tuple[Tensor, Tensor]:
    return places[None], torch.ones_like(places[None], dtype=torch.bool)


def _with_scores(
    tokens: Tokens, captures: Sequence[tuple[Capture, Tensor]], ranks: Ranks
) -> Tokens:
    logits = [capture.logits[0, :, at].T for capture, at in captures]
    looks = [c.text_attention[0] for c, _ in captures if c.text_attention is not None]
    return replace(
        tokens,
        logits=ranks.heads(pad_sequence(logits, batch_first=True).transpose(1, 2), 1),
        lse=ranks.heads(torch.cat([capture.lse for capture, _ in captures]), 1),
        text_attention=ranks.mean(_side_by_side(looks, tokens.valid.shape[1])) if looks else None,
    )


def _side_by_side(looks: Sequence[Tensor], n_tokens: int) -> Tensor:
    """[B, T, N] the weights [T_b, N_b] of text tokens on visual ones, with zeros on filler."""
    result = looks[0].new_zeros(len(looks), max(map(len, looks)), n_tokens)
    for row, found in enumerate(looks):
        result[row, : found.shape[0], : found.shape[1]] = found
    return result
