"""The input and output of selectors, and the steps that several selectors share.

Every function works on a whole batch and treats each row as if it were alone: filler and other
rows never change a row's result. Scores are float32, or float64 for float64 states; ties go to the
lowest index.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.errors import UsageError
from tpcal.plans.selectors._counts import Counts as Counts
from tpcal.plans.selectors._counts import read_counts


@dataclass(frozen=True)
class Tokens:
    """The visual tokens that remain at a cut, and the information a selector may use.

    A field that the selector does not list in ``needs`` may be None. Filler is on the right.
    """

    layer: int
    """Decoder layer that the cut stands before; 0 is before the decoder."""
    hidden: Tensor
    """[B, N, D] states entering that layer."""
    valid: Tensor
    """[B, N] bool, False on filler."""
    index: Tensor
    """[B, N] int64, rank among the row's original visual tokens, ascending; -1 on filler."""
    image: Tensor
    """[B, N] int64, number of the token's view in its row: an image, a tile of one, or a step of a
    video; -1 on filler."""
    n_original: Tensor
    """[B] int64, number of original visual tokens of the row."""
    grid_row: Tensor
    """[B, N] int64, row in the view's token grid; -1 on filler."""
    grid_col: Tensor
    """[B, N] int64, column in the grid; newline tokens have an extra column; -1 on filler."""
    grid_shape: Tensor
    """[B, N, 2] int64, numbers of rows and columns of the token's view."""
    logits: Tensor | None = None
    """[B, H, N] logits q·k/sqrt(d) of the last prompt token, after RoPE, at layer - 1."""
    lse: Tensor | None = None
    """[B, H] logsumexp of that query's logits over all keys it sees."""
    keys: Tensor | None = None
    """[B, N, E] post-RoPE keys of layer - 1, KV heads flattened; None at layer 0."""
    text_hidden: Tensor | None = None
    """[B, T, D] states of the prompt's text tokens after the first visual token."""
    text_valid: Tensor | None = None
    """[B, T] bool, False on filler."""
    text_keys: Tensor | None = None
    """[B, T, E] keys of these text tokens; None at layer 0."""
    text_attention: Tensor | None = None
    """[B, T, N] softmax weights of the text tokens as queries at layer - 1, mean over heads."""
    final_norm: Callable[[Tensor], Tensor] | None = None
    """The decoder's final norm."""
    vision_scores: Tensor | None = None
    """[B, N] attention of the vision tower to the token's patches; -inf if it has no patches."""
    vision_keys: Tensor | None = None
    """[B, N, E] the tower's keys, mean over the token's patches and heads; 0 if it has none."""
    covers: Tensor | None = None
    """[B, N] bool, False on tokens without pixels (newline, class); None if all have some."""
    counts: Counts | None = None
    """Numbers of tokens, on the host, of this batch and this cut; None if they must be read."""


@dataclass(frozen=True)
class Work:
    """The numbers of tokens of one prompt on which the cost of a selector depends."""

    n_tokens: int
    """Number of visual tokens before the cut."""
    n_keep: int
    """Number of visual tokens that stay."""
    n_text: int
    """Number of text tokens after the first visual token."""
    hidden: int


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses which visual tokens remain. Its fields are the parameters that a plan may set.

    Fields are declared with ``fraction``, ``number``, ``whole`` or ``choice``, which carry the
    rule that is checked when a selector is made.
    """

    required: ClassVar[frozenset[str]] = frozenset()
    """Information it always needs: any of scores, text_scores, keys, text, norm, vision."""
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Parameters worth searching, with their lowest and highest number, or with all choices."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Parameters that plans of earlier versions may name, and what to do about each."""

    def __post_init__(self) -> None:
        owner = type(self).__module__.rpartition(".")[2]
        problems = []
        for f in fields(self):
            value = getattr(self, f.name)
            if "rule" in f.metadata and not f.metadata["holds"](value):
                problems.append(f"{owner}.{f.name} must {f.metadata['rule']}; got {value!r}.")
        if problems:
            raise UsageError("\n".join(problems))

    @property
    def needs(self) -> frozenset[str]:
        """Information that ``Tokens`` must hold; a set of the words listed at ``required``."""
        return self.required

    @property
    def min_layer(self) -> int:
        """Lowest layer it can cut at; 1 if it needs attention, which the first layer computes."""
        return int(bool(self.needs & {"scores", "text_scores"}))

    @property
    def reads_attention(self) -> bool:
        """Whether it needs information from the attention of the layer before the cut."""
        return bool(self.needs & {"scores", "text_scores", "keys"})

    @property
    def reads_grid(self) -> bool:
        """Whether it reads the places of tokens in their image: row, column and grid shape."""
        return False

    @property
    def reads_views(self) -> bool:
        """Whether it treats the tiles of a picture, or the steps of a video, apart."""
        return self.reads_grid

    @property
    def merges(self) -> bool:
        """Whether it gives tokens that stay new states by itself."""
        return type(self).merged is not Selector.merged

    def flops(self, work: Work) -> float:
        """Upper bound on the FLOPs of the matrix products of ``select`` and ``merged``; default 0.

        The attention rows requested through ``needs`` are not included.
        """
        return 0.0

    @abstractmethod
    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        """[B, N] bool: exactly ``min(n_keep, valid tokens)`` True in each row, never on filler.

        Args:
            tokens: The candidates.
            n_keep: [B] int64, number of tokens to keep in each row.
        """

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        """[B, N, D] new states of the tokens that stay; None if states do not change.

        The values at other tokens are ignored. A token that stays keeps its position, and earlier
        layers keep its keys and values; only its state from this layer on changes. If no token is
        dropped, no state may change.

        Args:
            tokens: The tokens that ``select`` received.
            stays: [B, N] bool, the choice that ``select`` returned.
        """
        return None


def checked(choice: Tensor, tokens: Tokens, n_keep: Tensor, name: str) -> Tensor:
    """The choice of a selector, after a check that it has the form `Selector.select` documents.

    The counts are compared without waiting for the device. On a GPU a wrong count therefore
    appears later, as CUDA's "device-side assert triggered"; on the CPU it is a clear error.

    Args:
        choice: The mask that ``select`` returned.
        tokens: The tokens that ``select`` received.
        n_keep: [B] int64, number of tokens to keep in each row, at most the row's tokens.
        name: Name of the selector.

    Raises:
        UsageError: The choice has the wrong shape, dtype or counts, or contains filler.
    """
    rule = (
        f"The selector {name} must return a bool tensor {list(tokens.valid.shape)} that is True "
        "for exactly n_keep tokens of each row and never on filler"
    )
    if not isinstance(choice, Tensor):
        raise UsageError(f"{rule}; got {type(choice).__name__}.")
    if choice.dtype != torch.bool or choice.shape != tokens.valid.shape:
        raise UsageError(f"{rule}; got {choice.dtype} {list(choice.shape)}.")
    right = choice.sum(dim=1) == n_keep
    if tokens.counts is None or min(tokens.counts.n_tokens) < choice.shape[1]:
        right = right > (choice > tokens.valid).any(dim=1)
    right = right.all()
    message = f"{rule}; it broke this at layer {tokens.layer} (docs/selectors.md)."
    try:
        torch._assert_async(right, message)
    except NotImplementedError:  # this device has no asynchronous assertion
        if not right:
            raise UsageError(message) from None
    except RuntimeError:
        raise UsageError(message) from None
    return choice


@dataclass(frozen=True)
class ScoredSelector(Selector):
    """A selector that keeps the tokens with the highest scores."""

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] scores; the values on filler are ignored."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        return top_mask(self.score(tokens), tokens.valid, n_keep)


def pair_flops(n_others: int, work: Work) -> float:
    """FLOPs of the products of every token with ``n_others`` states: 2 N n_others D."""
    return 2.0 * work.n_tokens * n_others * work.hidden


def choice(default: str, *others: str) -> Any:
    """A parameter that is one of the given words; ``default`` is the default."""
    options = (default, *others)
    return parameter(
        default,
        f"be one of {', '.join(options)}",
        lambda v: isinstance(v, str) and v in options,
        {"enum": list(options)},
    )


def fraction(default: float) -> Any:
    """A parameter that is a number in [0, 1]."""
    return parameter(
        default,
        "be in [0, 1]",
        lambda v: _is_number(v) and 0 <= v <= 1,
        {"type": "number", "minimum": 0, "maximum": 1},
    )


def number(default: float, *, low: float) -> Any:
    """A parameter that is a finite number of at least ``low``."""
    return parameter(
        default,
        f"be at least {low:g}",
        lambda v: _is_number(v) and v >= low,
        {"type": "number", "minimum": low},
    )


def whole(default: int, *, low: int) -> Any:
    """A parameter that is an integer of at least ``low``."""
    return parameter(
        default,
        f"be an integer of at least {low}",
        lambda v: type(v) is int and v >= low,
        {"type": "integer", "minimum": low},
    )


def parameter(
    default: Any, rule: str, holds: Callable[[Any], bool], schema: Mapping[str, Any]
) -> Any:
    """A parameter with any rule.

    Args:
        default: Value if the plan does not set the parameter.
        rule: Completes "must …" in the error message.
        holds: Function that returns whether a value satisfies the rule.
        schema: The same rule in JSON Schema, for editors.
    """
    return field(default=default, metadata={"rule": rule, "holds": holds, "schema": schema})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def scored(result: Tensor, like: Tensor) -> Tensor:
    """The result in float64 if ``like`` is float64, otherwise in float32.

    Sums over D are computed in float64 and rounded here. The order of additions depends on the
    shape, so that without the rounding filler could decide between near-duplicates.
    """
    return result if like.dtype == torch.float64 else result.float()


def unit(x: Tensor) -> Tensor:
    """[..., D] float64 rows of length 1; rows that are zero or not finite become zero."""
    x = x.to(torch.float64, copy=True)  # one copy, changed in place, because it is large
    x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-8))
    return x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def ranks(scores: Tensor, valid: Tensor, group: Tensor | None = None) -> Tensor:
    """[B, N] rank of each token by descending score, within its group if groups are given.

    Rank 0 is the highest score. Equal scores rank by index, NaN ranks last, and filler ranks after
    all tokens.

    Args:
        scores: [B, N] floating or integer.
        valid: [B, N] bool, False on filler.
        group: [B, N] int64, e.g. the image of each token.
    """
    if scores.dtype.is_floating_point:
        least = torch.finfo(scores.dtype).min
        scores = scores.nan_to_num(nan=least, neginf=least) + 0.0  # -0.0 and 0.0 are a tie
    if group is None:
        return _ranks_in_row(scores, valid)
    group = group.masked_fill(~valid, torch.iinfo(torch.int64).max)
    # Two stable sorts, by score and then by group, list each group's tokens contiguously in order
    # of score. The rank is the position in this list minus the position where the group starts.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, group.gather(-1, order).argsort(dim=-1, stable=True))
    grouped = group.gather(-1, order)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    starts = torch.ones_like(grouped, dtype=torch.bool)
    starts[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    start = torch.where(starts, place, 0).cummax(dim=-1).values if place.numel() else place
    in_group = torch.empty_like(order).scatter_(-1, order, place - start)
    return in_group.masked_fill(~valid, torch.iinfo(torch.int64).max)


def _ranks_in_row(scores: Tensor, valid: Tensor) -> Tensor:
    # A second key would keep filler behind tokens of the lowest integer score; -inf does so for
    # floating scores, because `ranks` leaves none in them.
    if not scores.dtype.is_floating_point:
        scores = scores.double()
    order = torch.where(valid, scores, -math.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    return torch.where(valid, rank, torch.iinfo(torch.int64).max)


def top_mask(scores: Tensor, valid: Tensor, n_keep: Tensor) -> Tensor:
    """[B, N] bool: the ``n_keep`` highest scores of each row; ties go to the lowest index."""
    # Filler ranks behind any number of tokens.
    return ranks(scores, valid) < n_keep.to(valid.device)[:, None]


def order_mask(order: Tensor, n_tokens: int) -> Tensor:
    """[B, N] bool mask of the picks [B, K]; -1 is no pick."""
    # No pick goes to one more column, which is cut off: -1 modulo N + 1 is N.
    mask = torch.zeros(order.shape[0], n_tokens + 1, dtype=torch.bool, device=order.device)
    return mask.scatter_(-1, order.remainder(n_tokens + 1), True)[:, :n_tokens]


def within(n_keep: Tensor, valid: Tensor) -> Tensor:
    """[B] int64: the smaller of ``n_keep`` and the number of valid tokens, at least 0."""
    return torch.minimum(n_keep.to(valid.device), valid.sum(-1)).clamp(min=0)


def counts_of(tokens: Tokens, n_keep: Tensor) -> Counts:
    """The numbers of the tokens and of the cut; waits for the device if the host has none."""
    if tokens.counts is not None:
        return tokens.counts
    return read_counts(tokens.valid, tokens.image, tokens.text_valid, n_keep)


def n_kept(tokens: Tokens, stays: Tensor) -> int:
    """Largest number of tokens that a row keeps, where ``stays`` [B, N] is the choice."""
    if tokens.counts is not None:
        return max(tokens.counts.n_keep, default=0)
    return int(stays.sum(-1).max()) if stays.numel() else 0


def image_counts(image: Tensor, valid: Tensor, n_images: int | None = None) -> Tensor:
    """[B, M] int64 number of tokens of each image.

    Args:
        image: [B, N] int64 number of each token's image.
        valid: [B, N] bool, False on filler.
        n_images: The largest number of images in a row, M; None if it must be read from ``image``.
    """
    if n_images == 1:
        return valid.sum(-1, keepdim=True)
    if n_images is None:
        n_images = max(1, int(image.max()) + 1) if image.numel() else 1
    counts = image.new_zeros(image.shape[0], n_images)
    return counts.scatter_add_(-1, image.clamp(min=0), valid.long())


def image_quotas(
    image: Tensor, valid: Tensor, n_keep: Tensor, n_images: int | None = None
) -> Tensor:
    """[B, M] int64: each image's share of the row's ``n_keep``, in proportion to its tokens.

    The shares of a row sum to ``min(n_keep, valid tokens)``. If ``n_keep`` is at least the number
    of images, every image keeps at least one token.

    Args:
        image: [B, N] int64 number of each token's image.
        valid: [B, N] bool, False on filler.
        n_keep: [B] int64, number of tokens to keep in each row.
        n_images: The largest number of images in a row, M; None if it must be read from ``image``.
    """
    if n_images == 1:
        return within(n_keep, valid)[:, None]
    # Method of largest remainders. With n_m tokens in image m, l_m = 1 token each if K suffices
    # (otherwise 0), and rest R = K - sum of l_m:
    #     share_m = l_m + floor(R w_m / W),  w_m = n_m - l_m,  W = sum of w_m
    # The tokens that rounding down leaves go, one each, to the images of the largest remainders
    # R w_m mod W; of equal remainders the first image comes first.
    counts, n_keep = image_counts(image, valid, n_images), within(n_keep, valid)[:, None]
    alive = (counts > 0).long()
    least = torch.where(n_keep >= alive.sum(-1, keepdim=True), alive, 0)
    rest, weights = n_keep - least.sum(-1, keepdim=True), counts - least
    total = weights.sum(-1, keepdim=True).clamp(min=1)
    share, remainder = rest * weights // total, rest * weights % total
    left = rest - share.sum(-1, keepdim=True)
    return least + share + (ranks(remainder, torch.ones_like(remainder).bool()) < left)
