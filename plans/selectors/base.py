"""What a selector may look at, what it must return, and the steps several selectors share.

Every function works on a whole batch and treats each row as if it were alone: filler and company
never change a row's result. Scores are float32 (float64 stays float64); ties go to the lowest
index.
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


@dataclass(frozen=True)
class Tokens:
    """The visual tokens still alive at a cut, and all that may be known about them.

    What a selector did not ask for through ``needs`` may be None. Filler stands at the right.
    """

    layer: int
    """Decoder layer the cut stands before; 0 is before the decoder."""
    hidden: Tensor
    """[B, N, D] states entering that layer."""
    valid: Tensor
    """[B, N] bool, False on filler."""
    index: Tensor
    """[B, N] int64, rank among the row's original visual tokens, ascending; -1 on filler."""
    image: Tensor
    """[B, N] int64, which image of the row; -1 on filler."""
    n_original: Tensor
    """[B] int64, original visual tokens of the row."""
    grid_row: Tensor
    """[B, N] int64, row in the image's token grid; -1 on filler."""
    grid_col: Tensor
    """[B, N] int64, column; newline-like tokens have a column of their own; -1 on filler."""
    grid_shape: Tensor
    """[B, N, 2] int64, rows and columns of the token's image."""
    logits: Tensor | None = None
    """[B, H, N] last prompt token's q·k/sqrt(d), after RoPE, at layer - 1."""
    lse: Tensor | None = None
    """[B, H] logsumexp of that query over all keys it sees."""
    keys: Tensor | None = None
    """[B, N, E] post-RoPE keys of layer - 1, KV heads flattened; None at layer 0."""
    text_hidden: Tensor | None = None
    """[B, T, D] states of the prompt's text tokens after the first visual token."""
    text_valid: Tensor | None = None
    """[B, T] bool, False on filler."""
    text_keys: Tensor | None = None
    """[B, T, E] their keys; None at layer 0."""
    text_attention: Tensor | None = None
    """[B, T, N] softmax weights of the text tokens as queries at layer - 1, mean over heads."""
    final_norm: Callable[[Tensor], Tensor] | None = None
    """The decoder's last norm."""
    vision_scores: Tensor | None = None
    """[B, N] how much the vision tower attends to a token's patches; -inf where it has none."""
    vision_keys: Tensor | None = None
    """[B, N, E] mean keys of its patches there, heads averaged; zeros where it has none."""
    covers: Tensor | None = None
    """[B, N] bool, False on tokens that cover no pixels (newline, class); None where all do."""


@dataclass(frozen=True)
class Work:
    """What a selector chooses from, as far as its cost depends on it; of one prompt."""

    n_tokens: int
    """Visual tokens alive."""
    n_keep: int
    """Of these stay so many."""
    n_text: int
    """Text tokens behind the first visual one."""
    hidden: int


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses which visual tokens go on. Its fields are the parameters a plan may set.

    Declare fields with ``fraction``, ``number``, ``whole`` or ``choice``: they carry the rule that
    is checked when a selector is made.
    """

    required: ClassVar[frozenset[str]] = frozenset()
    """What it always needs, of scores, text_scores, keys, text, norm, vision."""
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Parameters worth searching: lowest and highest number, or all words."""
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
        """What must be in ``Tokens``, of scores, text_scores, keys, text, norm, vision."""
        return self.required

    @property
    def min_layer(self) -> int:
        """Lowest layer it can cut at: attention exists only after a layer has run."""
        return int(bool(self.needs & {"scores", "text_scores"}))

    @property
    def reads_attention(self) -> bool:
        """Something must be read at the attention of the layer before, where there is one."""
        return bool(self.needs & {"scores", "text_scores", "keys"})

    def flops(self, work: Work) -> float:
        """FLOPs of the matrix products of ``select`` and ``merged``, at most; by default none.

        Without the score rows that it asks for through ``needs``.
        """
        return 0.0

    @abstractmethod
    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        """[B, N] bool: exactly ``min(n_keep, valid tokens)`` True in each row, never on filler.

        Args:
            tokens: The candidates.
            n_keep: [B] int64.
        """

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        """[B, N, D] states of the tokens that stay, others do not matter; None: as they are.

        A token that stays keeps its position, and the layers before keep its keys and values;
        only its state from here on is another. Where nothing leaves, nothing may change.

        Args:
            tokens: What ``select`` saw.
            stays: [B, N] bool, what it chose.
        """
        return None


def checked(choice: Tensor, tokens: Tokens, n_keep: Tensor, name: str) -> Tensor:
    """The choice of a selector, where it is what `Selector.select` promises.

    The counts are compared without waiting for the device. On a GPU a wrong count therefore shows
    a little later, as CUDA's "device-side assert triggered"; on the CPU it is told in words.

    Args:
        choice: What ``select`` returned.
        tokens: What it saw.
        n_keep: [B] int64, what it was asked for; no more than the row has.
        name: The selector's.

    Raises:
        UsageError: The choice has another shape or dtype, or rows with other counts or filler.
    """
    rule = (
        f"The selector {name} must return a bool tensor {list(tokens.valid.shape)} that is True "
        "for exactly n_keep tokens of each row and never on filler"
    )
    if not isinstance(choice, Tensor):
        raise UsageError(f"{rule}; got {type(choice).__name__}.")
    if choice.dtype != torch.bool or choice.shape != tokens.valid.shape:
        raise UsageError(f"{rule}; got {choice.dtype} {list(choice.shape)}.")
    right = (choice.sum(dim=1) == n_keep).all() & ~(choice & ~tokens.valid).any()
    message = f"{rule}; it broke this at layer {tokens.layer} (docs/selectors.md)."
    try:
        torch._assert_async(right, message)
    except NotImplementedError:  # a device without it, which is waited for
        if not right:
            raise UsageError(message) from None
    except RuntimeError:
        raise UsageError(message) from None
    return choice


@dataclass(frozen=True)
class ScoredSelector(Selector):
    """A selector that keeps the tokens of the highest score."""

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] scores; what stands on filler does not matter."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        return top_mask(self.score(tokens), tokens.valid, n_keep)


def pair_flops(n_others: int, work: Work) -> float:
    """FLOPs of the products of every token with so many states."""
    return 2.0 * work.n_tokens * n_others * work.hidden


def choice(default: str, *others: str) -> Any:
    """A parameter that is one of a few words."""
    options = (default, *others)
    return parameter(
        default,
        f"be one of {', '.join(options)}",
        lambda v: isinstance(v, str) and v in options,
        {"enum": list(options)},
    )


def fraction(default: float) -> Any:
    """A parameter in [0, 1]."""
    return parameter(
        default,
        "be in [0, 1]",
        lambda v: _is_number(v) and 0 <= v <= 1,
        {"type": "number", "minimum": 0, "maximum": 1},
    )


def number(default: float, *, low: float) -> Any:
    """A finite parameter of at least ``low``."""
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
    """A parameter with a rule of its own; ``rule`` completes "must …".

    ``schema`` says the same as ``holds`` in JSON Schema, for editors.
    """
    return field(default=default, metadata={"rule": rule, "holds": holds, "schema": schema})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def scored(result: Tensor, like: Tensor) -> Tensor:
    """The result in the dtype that scores of ``like`` have: float64 stays, the rest is float32.

    Sums over D are made in float64 and rounded here. Sums of another shape add up in another
    order, and so filler would otherwise decide between near-duplicates of half precision.
    """
    return result if like.dtype == torch.float64 else result.float()


def unit(x: Tensor) -> Tensor:
    """[..., D] float64 rows of length 1; rows that are zero or not finite become zero."""
    x = x.to(torch.float64, copy=True)  # one copy, changed in place: it is the largest tensor here
    x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-8))
    return x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def ranks(scores: Tensor, valid: Tensor, group: Tensor | None = None) -> Tensor:
    """[B, N] rank of each token by falling score, within its group where groups are given.

    Rank 0 is the highest score; equal scores rank by index; NaN ranks last; filler ranks behind
    everything.

    Args:
        scores: [B, N] floating or integer.
        valid: [B, N] bool.
        group: [B, N] int64, e.g. the image of each token.
    """
    if scores.dtype.is_floating_point:
        least = torch.finfo(scores.dtype).min
        scores = scores.nan_to_num(nan=least, neginf=least) + 0.0  # -0.0 and 0.0 are a tie
    group = torch.zeros_like(valid, dtype=torch.int64) if group is None else group
    group = group.masked_fill(~valid, torch.iinfo(torch.int64).max)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, group.gather(-1, order).argsort(dim=-1, stable=True))
    grouped = group.gather(-1, order)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    starts = torch.ones_like(grouped, dtype=torch.bool)
    starts[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    start = torch.where(starts, place, 0).cummax(dim=-1).values if place.numel() else place
    in_group = torch.empty_like(order).scatter_(-1, order, place - start)
    return in_group.masked_fill(~valid, torch.iinfo(torch.int64).max)


def top_mask(scores: Tensor, valid: Tensor, n_keep: Tensor) -> Tensor:
    """[B, N] bool: the ``n_keep`` highest scores of each row; ties go to the lowest index."""
    return (ranks(scores, valid) < within(n_keep, valid)[:, None]) & valid


def order_mask(order: Tensor, n_tokens: int) -> Tensor:
    """[B, N] bool from picks [B, K] in the order they were made; -1 is no pick."""
    mask = torch.zeros(order.shape[0], n_tokens + 1, dtype=torch.bool, device=order.device)
    return mask.scatter_(-1, order.masked_fill(order < 0, n_tokens), True)[:, :n_tokens]


def within(n_keep: Tensor, valid: Tensor) -> Tensor:
    """[B] int64: ``n_keep`` where the row has so many tokens, otherwise all it has."""
    return torch.minimum(n_keep.to(valid.device), valid.sum(-1)).clamp(min=0)


def image_counts(image: Tensor, valid: Tensor) -> Tensor:
    """[B, M] int64: tokens of each image; M is the most images a row has, at least 1."""
    n_images = max(1, int(image.max()) + 1) if image.numel() else 1
    counts = image.new_zeros(image.shape[0], n_images)
    return counts.scatter_add_(-1, image.clamp(min=0), valid.long())


def image_quotas(image: Tensor, valid: Tensor, n_keep: Tensor) -> Tensor:
    """[B, M] int64: each image's share of the row's ``n_keep``, in proportion to its tokens.

    Sums to ``min(n_keep, valid tokens)``; largest remainders first, ties to the first image. Where
    ``n_keep`` allows it every image keeps at least one token.
    """
    counts, n_keep = image_counts(image, valid), within(n_keep, valid)[:, None]
    alive = (counts > 0).long()
    least = torch.where(n_keep >= alive.sum(-1, keepdim=True), alive, 0)
    rest, weights = n_keep - least.sum(-1, keepdim=True), counts - least
    total = weights.sum(-1, keepdim=True).clamp(min=1)
    share, remainder = rest * weights // total, rest * weights % total
    left = rest - share.sum(-1, keepdim=True)
    return least + share + (ranks(remainder, torch.ones_like(remainder).bool()) < left)
