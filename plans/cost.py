"""The cost of a plan, computed exactly: layer-average keep, FLOPs, KV bytes; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tpcal.plans.plan_records import Cost, Cut, Plan

if TYPE_CHECKING:
    from tpcal.plans.selectors.base import Selector

EVERY_PLAN = "every plan"
"""Key of the executor's time per prefill, among the times of cuts by each selector."""
PER_TOKEN = "{} per token"
"""Key of a selector's time for every token that it keeps."""
_NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class DecoderShape:
    """Widths of a decoder that its cost depends on."""

    n_layers: int
    hidden: int
    ffn: int
    """Width of the FFN that a token passes; with experts, of all that it visits."""
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    dtype_bytes: int
    """Bytes of one number in the KV cache."""
    kv_limits: tuple[int | None, ...] = ()
    """[L] largest number of tokens in the cache of each layer: the size of a sliding window, 0 if
    the layer reads the cache of another layer, None if there is no limit. Empty: no layer has a
    limit."""
    latent: int | None = None
    """Numbers that a layer caches per token instead of K and V of its heads."""
    kv_rank: int | None = None
    """Numbers of the latent that K and V of all heads are made from; None without latent attention
    (MLA)."""
    q_rank: int | None = None
    """The same of queries; None if they are made from the hidden state."""
    shared_key: int | None = None
    """Rotary numbers of a key that all heads share, with latent attention."""
    value_dim: int | None = None
    """Numbers of a head's value where they are not ``head_dim``, as with latent attention."""

    @property
    def has_latents(self) -> bool:
        """Whether K and V are made from latents, also where transformers caches them expanded."""
        return self.latent is not None or self.kv_rank is not None


def layer_average_keep(schedule: Sequence[int], n_tokens: int) -> float:
    """Mean over layers of visual tokens entering / ``n_tokens``; 1.0 without visual tokens.

    Args:
        schedule: [L] number of visual tokens entering each layer.
        n_tokens: Number of visual tokens of the unpruned prompt.

    Source:
        Li et al. 2025 (BTP), arXiv 2505.22038: their "22 %" and "128 tokens" are this average.
        DART, DivPrune and ToDRE quote the count after their single cut instead.
    """
    if n_tokens == 0:
        return 1.0
    return sum(schedule) / (len(schedule) * n_tokens)


def layer_flops(shape: DecoderShape, n: int) -> float:
    """FLOPs of one decoder layer over ``n`` tokens, a multiply-add counted as two.

    The count covers projections with grouped queries, the full n x n attention products (a causal
    kernel may compute half of them), and a gated FFN. Norms, softmax, activation and rotary
    embedding are left out (under 1 % at hidden 4096).
    """
    # Multiply-adds per layer, each counted as two FLOPs, with D = hidden, d = head_dim and
    # v = value_dim, which is d without latent attention:
    #     projections  n D (H d + Hkv (d + v) + H v)   Q, K and V, output
    #     attention    n^2 H (d + v)                   q . k, and weights times v
    #     gated FFN    3 n D F                         gate, up and down
    attention = n * n * shape.n_heads * (shape.head_dim + (shape.value_dim or shape.head_dim))
    products = n * _projections(shape) + attention + 3 * n * shape.hidden * shape.ffn
    return 2.0 * products


def _projections(shape: DecoderShape) -> int:
    """Multiply-adds of the attention's projections for one token."""
    # With latent attention, of ranks r and r_q, and s rotary numbers that all heads share:
    #     Q        r_q (D + H d)                      or D H d without a rank
    #     K and V  D (r + s) + r H (d - s + v)
    #     output   D H v
    hidden, n_heads, width = shape.hidden, shape.n_heads, shape.head_dim
    value = shape.value_dim or width
    queries = hidden * n_heads * width
    if shape.q_rank:
        queries = shape.q_rank * (hidden + n_heads * width)
    keys_values = hidden * shape.n_kv_heads * (width + value)
    if shape.kv_rank:
        shared = shape.shared_key or 0
        keys_values = hidden * (shape.kv_rank + shared)
        keys_values += shape.kv_rank * n_heads * (width - shared + value)
    return queries + keys_values + hidden * n_heads * value


def prefill_flops(shape: DecoderShape, n_tokens: Sequence[int]) -> float:
    """FLOPs of one prefill: decoder layers and one row of the output head; no vision tower.

    Args:
        shape: Widths of the decoder.
        n_tokens: [L] visual and text tokens entering each layer.

    Raises:
        ValueError: ``n_tokens`` has another length than the decoder has layers.

    Source:
        4nd^2 + 2n^2d + 3ndm multiply-adds of PyramidDrop (arXiv 2410.17247) and BTP (arXiv
        2505.22038), made aware of grouped queries, times two. Checked against torch's FLOP counter
        in tests/plans/test_cost.py.
    """
    if len(n_tokens) != shape.n_layers:
        raise ValueError(
            f"n_tokens must have one entry per layer ({shape.n_layers}); got {len(n_tokens)}."
        )
    return sum(layer_flops(shape, n) for n in n_tokens) + 2.0 * shape.hidden * shape.vocab


def kv_bytes(shape: DecoderShape, n_tokens: Sequence[int]) -> int:
    """Bytes of K and V of one sequence.

    This is an upper bound where tokens left before a layer with a sliding window: the window
    counts positions, so those that left make no room for older tokens.

    Args:
        shape: Widths of the decoder.
        n_tokens: [L] number of tokens whose keys and values each layer caches.
    """
    # A layer caches width = Hkv (d + v) numbers per token, or one latent vector, of at most as
    # many tokens as its sliding window holds.
    held = n_tokens
    if shape.kv_limits:
        limits = zip(n_tokens, shape.kv_limits, strict=True)
        held = [n if limit is None else min(n, limit) for n, limit in limits]
    heads = shape.n_kv_heads * (shape.head_dim + (shape.value_dim or shape.head_dim))
    width = shape.latent or heads
    return width * shape.dtype_bytes * sum(held)


def selection_flops(
    plan: Plan, shape: DecoderShape, n_tokens: int | Sequence[int], n_text: int
) -> float:
    """FLOPs of selecting tokens: attention rows besides the kernel, and the selectors' own work.

    If the plan merges tokens, comparing those that leave with those that stay belongs to it. Only
    matrix products are counted, as in the whole module. The result is an upper bound: all text is
    assumed to follow the image, and selectors are assumed to compare all pairs. Sorting,
    elementwise work and gathers are left out; a cut copies each remaining state once, which is
    little compared to the reads of one layer. The vision tower is left out, as in the prefill.

    Args:
        plan: The cuts; conditional cuts are counted as measured but not made.
        shape: Widths of the decoder.
        n_tokens: Number of visual tokens of the prompt, or of each of its images.
        n_text: Number of text tokens of the prompt.
    """
    from tpcal.plans.executor import merging  # needs torch, which this module does without
    from tpcal.plans.selectors import create
    from tpcal.plans.selectors.base import Work

    flops, alive = 0.0, plan.choice_sets(n_tokens)
    counts_of = [plan.counts(n) for n in alive]
    # A query row of attention over m keys takes 2 H d m FLOPs. A cut at layer l > 0 computes the
    # rows its selector and its condition need over all visual and text tokens; the selector then
    # adds its own products. A cut that drops no token selects nothing.
    row = 2.0 * shape.n_heads * shape.head_dim  # per key
    for cut, *counts in zip(plan.cuts, *counts_of, strict=True):
        selector, total = None, sum(alive)
        if cut.selector is not None and sum(counts) < total:
            selector = create(cut.selector, cut.params)
        if cut.layer > 0:
            flops += row * _n_score_rows(cut, selector, total, n_text) * (total + n_text)
        if selector is not None:
            works = [Work(*pair, n_text, shape.hidden) for pair in zip(alive, counts, strict=True)]
            flops += sum(map(selector.flops, works))
            if plan.merge is not None and not selector.merges:
                flops += sum(map(merging.flops, works))  # others merge in a way of their own
        alive = tuple(counts)
    return flops


def _n_score_rows(cut: Cut, selector: Selector | None, alive: int, n_text: int) -> int:
    condition = cut.condition
    if condition is None and (selector is None or not selector.reads_attention):
        return 0
    text = condition is not None or (selector is not None and "text_scores" in selector.needs)
    both = condition is not None and condition.visual_to_text_below is not None
    return 1 + n_text * text + alive * both


def plan_cost(
    plan: Plan,
    shape: DecoderShape,
    n_tokens: int | Sequence[int],
    n_text: int,
    layer_ms: Sequence[tuple[int, float]] = (),
    executor_ms: Mapping[str, float] = _NOTHING,
) -> Cost:
    """Cost of a plan for one prompt.

    Args:
        plan: The cuts.
        shape: Widths of the decoder.
        n_tokens: Number of visual tokens of the prompt, or of each of its images.
        n_text: Number of text tokens of the prompt.
        layer_ms: Measured pairs (tokens, milliseconds of one layer); if empty, times are None.
        executor_ms: Measured milliseconds per plan (`EVERY_PLAN`), per cut (the selector's name)
            and per kept token (`PER_TOKEN`). A selector that was not measured is counted as the
            slowest that was.
    """
    schedule = plan.schedule(n_tokens, shape.n_layers)
    choosing = selection_flops(plan, shape, n_tokens, n_text)
    counts = plan.counts(n_tokens)
    pruned = [n + n_text for n in schedule]
    n_visual = sum(plan.choice_sets(n_tokens))
    full = [n_visual + n_text] * shape.n_layers
    return Cost(
        n_tokens=n_visual,
        n_text=n_text,
        counts=counts,
        layer_average_keep=layer_average_keep(schedule, n_visual),
        prefill_flops=prefill_flops(shape, pruned) + choosing,
        unpruned_prefill_flops=prefill_flops(shape, full),
        kv_bytes=kv_bytes(shape, pruned),
        unpruned_kv_bytes=kv_bytes(shape, full),
        prefill_ms=prefill_ms(plan, counts, pruned, layer_ms, executor_ms) if layer_ms else None,
        unpruned_prefill_ms=layers_ms(full, layer_ms) if layer_ms else None,
        selection_flops=choosing,
    )


def prefill_ms(
    plan: Plan,
    counts: Sequence[int],
    n_tokens: Sequence[int],
    layer_ms: Sequence[tuple[int, float]],
    executor_ms: Mapping[str, float] = _NOTHING,
) -> float:
    """Milliseconds of the decoder over one prompt, the executor's work included.

    Args:
        plan: The cuts.
        counts: Number of visual tokens left after each cut.
        n_tokens: [L] number of visual and text tokens entering each layer.
        layer_ms: Measured times as in `plan_cost`; not empty.
        executor_ms: Measured times as in `plan_cost`.
    """
    # time = sum over layers of t(n_l) + t_plan + sum over cuts of (t_cut + t_token * kept)
    total = layers_ms(n_tokens, layer_ms)
    if not plan.cuts or not executor_ms:
        return total
    known = [name for name in executor_ms if PER_TOKEN.format(name) in executor_ms]

    def cut_ms(selector: str, count: int) -> float:
        return executor_ms[selector] + executor_ms[PER_TOKEN.format(selector)] * count

    for cut, count in zip(plan.cuts, counts, strict=True):
        if cut.selector is not None:
            alike = [cut.selector] if cut.selector in known else known
            total += max((cut_ms(selector, count) for selector in alike), default=0.0)
    return total + executor_ms.get(EVERY_PLAN, 0.0)


def layers_ms(n_tokens: Sequence[int], layer_ms: Sequence[tuple[int, float]]) -> float:
    """Milliseconds of layers with ``n_tokens`` tokens, interpolated between measured counts.

    Above the largest measured count, the line through the last two measurements is extended.
    Below the smallest one, its time is used.
    """
    import numpy as np

    counts, times = np.array(sorted(layer_ms), dtype=np.float64).T
    found = np.interp(n_tokens, counts, times)
    if len(counts) > 1:
        slope = (times[-1] - times[-2]) / (counts[-1] - counts[-2])
        found = found + np.maximum(np.asarray(n_tokens) - counts[-1], 0) * slope
    return float(found.sum())
