"""Reads attention scores beside the model's own attention kernel.

One function is registered with transformers for all models. It is switched on for single attention
modules, by giving them a copy of their config; there it computes the few score rows that a cut
needs from the real queries and keys (after normalisation and rotary embedding) and then calls the
kernel the model would have called. No attention matrix is ever built.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from tpcal.plans.executor.kernels import is_flash, kernel_of
from tpcal.plans.executor.masks import FlashOrder, Mask, last_row, mask_rows

_LOG = logging.getLogger(__name__)

NAME = "tpcal_probe"
ATTENDED = "tpcal_attended"
CHUNK = 2**23  # score entries that exist at one time


@dataclass(frozen=True)
class Request:
    """What to read at one attention module in one pass; `survivors` explains columns."""

    last: Tensor | None
    """[B] int64 column of the query whose scores are wanted, that of the last prompt token; None
    if this is the last column of every row."""
    text: tuple[Tensor, Tensor] | None = None
    """[B, T] columns and validity of the text queries; None if their weights are not wanted."""
    visual: tuple[Tensor, Tensor] | None = None
    """[B, N] columns and validity of the visual tokens alive."""
    visual_queries: bool = False
    """Whether the mass from visual tokens to text is measured too; this costs one score row per
    visual token."""

    def to(self, device: torch.device) -> Request:
        """The request on a device."""
        last = None if self.last is None else self.last.to(device)
        text, visual = (_moved(pair, device) for pair in (self.text, self.visual))
        return Request(last, text, visual, self.visual_queries)


@dataclass(frozen=True)
class Capture:
    """What was read at one attention module in one pass."""

    logits: Tensor
    """[B, H, m] scores of the last query for the new tokens, before the softmax."""
    lse: Tensor
    """[B, H] logsumexp over all keys it sees, and over the sink if there is one."""
    keys: Tensor
    """[B, Hkv, m, d] keys of the new tokens, after rotary embedding."""
    text_attention: Tensor | None = None
    """[B, T, N] softmax weights of the text queries on the visual tokens, mean over heads."""
    text_to_visual: Tensor | None = None
    """[B] mass from text to visual tokens, mean over queries and heads; nan without either."""
    visual_to_text: Tensor | None = None
    """[B] mass from visual to text tokens, likewise; zero if it was not wanted."""


@dataclass(frozen=True)
class Softmax:
    """How an attention module makes weights of the products of queries and keys."""

    scaling: float
    """Factor of the products, usually 1/sqrt(d)."""
    softcap: float | None = None
    """Bound c of the scores s, which become c tanh(s / c) (Gemma 2)."""
    sinks: Tensor | None = None
    """[H] score of each head's sink, which takes part in every softmax without being a key
    (GPT-OSS). The weights of the keys then sum to less than one."""

    def lse(self, scores: Tensor) -> Tensor:
        """[B, H, R] logsumexp of scores [B, H, R, K] and the sink."""
        found = scores.logsumexp(dim=-1)
        if self.sinks is None:
            return found
        return torch.logaddexp(found, self.sinks.to(scores)[:, None])

    def weights(self, scores: Tensor) -> Tensor:
        """[B, H, R, K] weights of scores; no entry for the sink."""
        if self.sinks is None:
            return scores.softmax(dim=-1)
        return (scores - self.lse(scores)[..., None]).exp()


class _Thread(local):
    """The request and the capture of one thread."""

    request: Request | None = None
    capture: Capture | None = None


class AttentionReader:
    """Reads calls of one attention module when it is asked to.

    Args:
        module: The module, before it is switched.
    """

    def __init__(self, module: nn.Module) -> None:
        self.twin = copy.copy(module)
        """The module with the config that it had before it was switched. A kernel is called with
        it, because flash kernels look their name up in the config again."""
        self._thread = _Thread()

    @property
    def kernel(self) -> str:
        """Name of the model's own kernel."""
        return self.twin.config._attn_implementation  # type: ignore[union-attr, return-value]

    @cached_property
    def window(self) -> int | None:
        """Number of positions that a query can see at most, its own included; None if all."""
        # A cache is made with the window of each layer, whatever the config calls it.
        layers = DynamicCache(config=self.twin.config).layers
        at = getattr(self.twin, "layer_idx", None)
        known = at is not None and at < len(layers)
        return getattr(layers[at], "sliding_window", None) if known else None

    def ask(self, request: Request) -> None:
        """Makes the reader read this thread's next call of the module."""
        self._thread.request = request

    @torch.compiler.disable
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        mask: Mask,
        softmax: Softmax,
    ) -> None:
        """Reads one call of the module if this thread asked for it."""
        mine = self._thread
        if mine.request is not None:
            mine.capture = read(query, key, mask, softmax, mine.request)
            mine.request = None

    def take(self) -> Capture | None:
        """The capture of this thread, which is then forgotten; None if nothing was read."""
        mine = self._thread
        capture, mine.capture, mine.request = mine.capture, None, None
        return capture


@cache
def warn_out_of_sight(layer: int, window: int) -> None:
    """Logs, once for a layer of a process, that its attention is read without seeing all images.

    Args:
        layer: The layer that is read.
        window: Number of positions that its queries see.
    """
    _LOG.warning(
        "The cut before layer %d reads the attention of layer %d, whose window is %d positions, "
        "and a prompt ends at least that far behind its first visual token. Visual tokens out of "
        "the window have no attention there: they leave first, and if none is inside, the first "
        "of them stay, whatever they show. Move the cut behind a layer without a window "
        "(layer_types in the model's config), or choose a selector that reads no attention.",
        layer + 1,
        layer,
        window,
    )


@contextmanager
def probing(
    modules: Mapping[int, nn.Module], others: Mapping[int, nn.Module] | None = None
) -> Iterator[dict[int, AttentionReader]]:
    """Readers of attention modules, by layer; afterwards the modules are as before.

    Args:
        modules: The modules to read.
        others: Modules that need `attended`.
    """
    probes = {layer: AttentionReader(module) for layer, module in modules.items()}
    with ExitStack() as undo:
        for layer, module in modules.items():
            undo.enter_context(switched(module, NAME, probes[layer]))
        for layer, module in (others or {}).items():
            if layer not in modules:
                undo.enter_context(switched(module, ATTENDED, AttentionReader(module)))
        yield probes


@contextmanager
def switched(module: nn.Module, name: str, reader: Any) -> Iterator[None]:
    """Lets an attention module call the function registered as ``name``.

    The function finds ``reader`` in the module's config, which is a copy made for this module.
    """
    # Modules look their kernel up by a name in their config. All layers share one config object,
    # so a module gets a copy of its own; the others go on with their kernel.
    config = module.config
    copied: Any = copy.copy(config)
    copied._attn_implementation_internal = name
    copied._tpcal_reader = reader
    module.config = copied
    try:
        yield
    finally:
        module.config = config


def probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention output of the module's own kernel, after its reader saw queries and keys."""
    probe: AttentionReader = module.config._tpcal_reader  # type: ignore[union-attr, assignment]
    mask = attention_mask
    if is_flash(probe.kernel) and (mask is None or mask.ndim == 2):
        causal = kwargs.get("is_causal")
        causal = probe.twin.is_causal if causal is None else causal
        mask = FlashOrder(mask, kwargs.get("sliding_window"), bool(causal))
    softmax = Softmax(scaling, kwargs.get("softcap"), kwargs.get("s_aux"))
    probe.attend(query, key, mask, softmax)
    return attended(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def attended(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention output of the module's own kernel, or of another where it takes no such mask.

    A flash kernel cannot take a mask with an entry for each query and key, which `flash_mask`
    makes where a flash kernel would show a query other keys, or count a key only once.
    """
    probe: AttentionReader = module.config._tpcal_reader  # type: ignore[union-attr, assignment]
    name, mask = probe.kernel, attention_mask
    if is_flash(name) and mask is not None and mask.ndim == 4:
        name = "sdpa"
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            name, hidden = "eager", torch.finfo(query.dtype).min  # sdpa ignores both
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, hidden)
    kernel = kernel_of(module, name)
    return kernel(probe.twin, query, key, value, mask, scaling=scaling, **kwargs)


AttentionInterface.register(NAME, probe_attention)
AttentionInterface.register(ATTENDED, attended)


def read(
    query: Tensor,
    key: Tensor,
    mask: Mask,
    softmax: Softmax,
    request: Request,
) -> Capture:
    """Scores and masses of one attention call.

    Args:
        query: [B, H, m, d].
        key: [B, Hkv, K, d], the new tokens last.
        mask: [1 or B, 1, m, K] bool or additive, or the mask of a flash or flex kernel; None means
            causal.
        softmax: How the module makes weights of products.
        request: What is wanted.
    """
    # A selector needs the scores of one query, so one row of the m x K matrix is computed. The
    # logsumexp over all keys turns these logits into the softmax weights of the real kernel:
    # weight = exp(logit - lse).
    n_new, request = query.shape[2], request.to(query.device)
    rows = partial(score_rows, query, key, mask, softmax.scaling, softcap=softmax.softcap)
    last = None if request.last is None else request.last[:, None]
    scores = rows(last)  # [B, H, 1, K]
    read_last = scores[:, :, 0, -n_new:], softmax.lse(scores)[:, :, 0], key[:, :, -n_new:]
    if request.text is None or request.visual is None:
        return Capture(*read_last)
    # Conditions need sums of softmax weights: of text queries on visual keys, and the other way.

    def weights(columns: Tensor) -> Tensor:
        return softmax.weights(rows(columns)).mean(dim=1)

    looks = _weights(weights, query, key, request.text, request.visual)
    t2v = _mass(looks, request.text[1], request.visual[1])
    v2t = torch.zeros_like(t2v)
    if request.visual_queries:
        back = _weights(weights, query, key, request.visual, request.text)
        v2t = _mass(back, request.visual[1], request.text[1])
    return Capture(*read_last, looks, t2v, v2t)


def score_rows(
    query: Tensor,
    key: Tensor,
    mask: Mask,
    scaling: float,
    columns: Tensor | None,
    softcap: float | None = None,
) -> Tensor:
    """[B, H, R, K] masked scores of the query columns [B, R], in float32 or wider.

    A score is softcap(scaling * q k) + mask, the formula of the eager kernel. Without columns, the
    only query is the last one (R = 1).
    """
    n_rows, n_heads, n_new, width = query.shape
    n_kv, n_keys = key.shape[1:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    if columns is None:
        rows = query[:, :, -1:]
    else:
        rows = query.gather(2, columns[:, None, :, None].expand(-1, n_heads, -1, width))
    rows = rows.to(dtype) * scaling
    # With grouped heads, H / Hkv query heads share a key head and stand beside each other. Their
    # rows become more rows of that key head, so keys need no repetition.
    rows = rows.reshape(n_rows, n_kv, -1, width)
    scores = rows @ key.to(dtype).transpose(2, 3)
    scores = scores.view(n_rows, n_heads, -1, n_keys)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if columns is None:
        bias = last_row(mask, query, n_keys)
    else:
        bias = mask_rows(mask, columns, n_new, n_keys)
    if bias is None:
        return scores
    bias = bias[:, None]  # [1 or B, 1, R, K]
    # An additive mask hides a key by the smallest number of its dtype, which in a wider dtype is a
    # number like others. It becomes -inf here, as with a mask of bools.
    if bias.dtype == torch.bool:
        return scores.masked_fill(~bias, -torch.inf)
    return scores.masked_fill(bias <= torch.finfo(bias.dtype).min, -torch.inf) + bias.to(dtype)


def _moved(
    pair: tuple[Tensor, Tensor] | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    return None if pair is None else (pair[0].to(device), pair[1].to(device))


def _weights(
    weights: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    sources: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
) -> Tensor:
    """[B, R, C] softmax weights of source on target tokens, mean over heads; 0 on filler."""
    columns, valid = sources
    n_rows, n_heads, n_new = query.shape[:3]
    n_keys = key.shape[2]
    # Targets are columns among the new tokens, which are the last n_new keys.
    at = (targets[0] + (n_keys - n_new))[:, None]
    known = valid[..., None] & targets[1][:, None]
    result = torch.zeros_like(known, dtype=torch.promote_types(query.dtype, torch.float32))
    # A few source rows at a time: all of them together could be as large as the attention matrix
    # that is never built.
    step = max(1, CHUNK // (n_rows * n_heads * n_keys))
    for start in range(0, columns.shape[1], step):
        asked = columns[:, start : start + step]
        found = weights(asked).gather(2, at.expand(-1, asked.shape[1], -1))
        result[:, start : start + step] = found
    return result.masked_fill(~known, 0)


def _mass(weights: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """[B] mass that sources give to targets, mean over sources; nan without sources or targets.

    Args:
        weights: [B, R, C], 0 on filler.
        sources: [B, R] bool.
        targets: [B, C] bool.

    Source:
        ToDRE (arXiv 2505.18757v2), the two ratios of stage 2. Their denominators are the numbers
        of query tokens, because each softmax row sums to one, a sink's share included.
    """
    empty = (sources.sum(dim=1) == 0) | (targets.sum(dim=1) == 0)
    return (weights.sum(dim=(1, 2)) / sources.sum(dim=1)).masked_fill(empty, torch.nan)
