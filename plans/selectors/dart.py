"""dart: keep a few pivots and, for each of them, the tokens least similar to it (DART)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import directions, distances
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    counts_of,
    image_quotas,
    order_mask,
    pair_flops,
    ranks,
    whole,
)

_BLOCK = 1 << 18  # numbers that are processed together, so that they stay in the CPU's cache


@dataclass(frozen=True)
class Dart(Selector):
    """Keeps pivots, the tokens with the largest L1 norm of keys, and tokens unlike the pivots.

    Each view keeps its exact share of ``n_keep``. It first keeps its pivots. The rest of the
    share is divided equally among the view's pivots and the text pivots: one after the other,
    each adds the tokens with the lowest cosine to it. At layer 0, where no keys exist yet, the
    norm is that of the embeddings.

    Needs:   keys, text, norm
    Cost:    O(B N D P) for P pivots
    Source:  Wen et al. 2025, arXiv 2502.11494 (DART). Counts, visit order and the form at layer 0
             are those of NVIDIA's TensorRT-Edge-LLM, where text pivots may also precede the image;
             here they follow the first visual token. The original keeps 4 + 8 floor(..) tokens;
             tpcal keeps exactly the requested count.
    """

    required: ClassVar[frozenset[str]] = frozenset({"keys", "text", "norm"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "image_pivots": (1, 16),
        "text_pivots": (0, 16),
    }
    removed: ClassVar[Mapping[str, str]] = {
        "visit": "Delete it: pivots are always visited by rank, image pivots first.",
        "image_start": "Delete it: only `visit: original` used it, which has been removed.",
    }

    image_pivots: int = whole(4, low=1)
    """Number of pivots among the tokens of each view."""
    text_pivots: int = whole(4, low=0)
    """Number of pivots among the prompt's text after the first visual token; all views share
    them."""

    @property
    def reads_views(self) -> bool:
        return True  # each has pivots of its own

    def flops(self, work: Work) -> float:
        """FLOPs of the cosines of every token to the pivots of one image and of the text."""
        n_pivots = min(self.image_pivots, work.n_keep) + min(self.text_pivots, work.n_text)
        return pair_flops(n_pivots, work)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        counts = counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(tokens.valid)
        # Step 1: split K over the images, and find the pivots: the tokens with the largest L1 norm
        # |k_i|_1 of their keys, per image and in the text.
        image = tokens.image.clamp(min=0)
        quota = image_quotas(image, tokens.valid, n_keep, counts.images)  # [B, M]
        most = min(self.image_pivots, max(counts.n_keep))
        pivots = image_pivots(tokens, quota.clamp(max=most), counts, most)  # [B, M, P]
        texts = text_pivots(tokens, self.text_pivots, counts)  # [B, P']
        turn = visit_order(pivots, texts)
        return taken_in_turn(tokens, quota, pivots, texts, turn, counts)


def taken_in_turn(
    tokens: Tokens,
    quota: Tensor,
    pivots: Tensor,
    texts: Tensor,
    turn: Tensor,
    counts: Counts | None = None,
) -> Tensor:
    """[B, N] bool: the pivots, and for each of them in turn the tokens unlike it.

    Args:
        tokens: The candidates.
        quota: [B, M] tokens that each image keeps.
        pivots: [B, M, P] places of each image's pivots; -1 where there is none.
        texts: [B, P'] places of the text pivots; -1 where there is none.
        turn: [B, M, P + P'] columns of ``distances_to`` in the order they are visited; -1 at the
            end.
        counts: The numbers of the tokens and of the cut; None if they must be read.
    """
    counts = counts or counts_of(tokens, quota.sum(-1))
    # far[i, t] = 1 - cos(norm(h_i), norm(h_p)) for the pivot p that is visited in turn t.
    image = tokens.image.clamp(min=0)
    per_token = turn.gather(1, image[..., None].expand(-1, -1, turn.shape[-1]))
    far = distances_to(tokens, pivots, texts, counts).gather(-1, per_token.clamp(min=0))
    # The image pivots are kept. Then each pivot in turn t of T adds, among the tokens not chosen
    # yet, its part of the image's share: the ones farthest from it.
    chosen = order_mask(pivots.flatten(1), tokens.valid.shape[-1])
    n_left, n_turns = quota - (pivots >= 0).sum(-1), (turn >= 0).sum(-1)
    parts = equal_parts(n_left, n_turns, turn.shape[-1])
    if counts.images == 1:
        return _farthest_in_row(far, tokens.valid, chosen, parts[:, 0])
    for step in range(turn.shape[-1]):
        pool = tokens.valid & ~chosen
        rank = ranks(far[..., step], pool, image)
        chosen = chosen | (pool & (rank < parts[..., step].gather(-1, image)))
    return chosen


def equal_parts(n: Tensor, n_parts: Tensor, most: int) -> Tensor:
    """[B, M, most] sizes of ``n_parts`` [B, M] parts of ``n`` [B, M]; 0 after the last part.

    They differ by at most one, the larger ones first.
    """
    turn, parts = torch.arange(most, device=n.device), n_parts.clamp(min=1)
    sizes = (n // parts)[..., None] + (turn < (n % parts)[..., None])
    return sizes.where(turn < n_parts[..., None], 0)


def _farthest_in_row(far: Tensor, valid: Tensor, chosen: Tensor, parts: Tensor) -> Tensor:
    """[B, N] bool: the chosen ones, and in turn t the parts[:, t] farthest of the others.

    Rows of one image need no ranks within images, which would take several times as many kernels.
    """
    # closed[i] = -inf where token i is chosen or filler, otherwise 0; one column more takes
    # what is not picked. The sort is stable: of equal distances the lowest index comes first.
    n_tokens, place = valid.shape[-1], torch.arange(valid.shape[-1], device=valid.device)
    closed = far.new_zeros(len(valid), n_tokens + 1)
    closed[:, :-1].masked_fill_(chosen | ~valid, -torch.inf)
    picked = place < parts[..., None]  # [B, T, N]
    for step in range(parts.shape[-1]):
        order = (far[..., step] + closed[:, :-1]).argsort(dim=-1, descending=True, stable=True)
        closed.scatter_(-1, order.where(picked[:, step], n_tokens), -torch.inf)
    return valid & (closed[:, :-1] == -torch.inf)


def l1_norms(states: Tensor, valid: Tensor, places: Sequence[slice | Tensor]) -> Tensor:
    """[B, N] sums of absolute values of ``states`` [B, N, E]; float32, or float64 for float64.

    Args:
        states: The states.
        valid: [B, N] bool, False on filler.
        places: Indices of the tokens of each row.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    result = torch.zeros_like(valid, dtype=wide)
    for b, at in enumerate(places):
        parts = _blocks(states[b].detach()[at])
        result[b, at] = _joined([part.to(wide, copy=True).abs_().sum(-1) for part in parts])
    return result


def _blocks(states: Tensor) -> tuple[Tensor, ...]:
    """The states in pieces that stay in a CPU's cache; whole on a GPU, where kernels cost time."""
    if states.device.type != "cpu":
        return (states,)
    return states.split(max(1, _BLOCK // max(1, states.shape[-1])))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def image_pivots(
    tokens: Tokens, n_pivots: Tensor, counts: Counts | None = None, most: int | None = None
) -> Tensor:
    """[B, M, P] indices of each image's pivots, in descending order of norm; -1 for fewer pivots.

    Args:
        tokens: The candidates.
        n_pivots: [B, M] int64, number of pivots of each image.
        counts: The numbers of the tokens and of the cut; None if they must be read.
        most: At least the largest number of pivots of an image, P; None if it must be read.
    """
    counts = counts or counts_of(tokens, n_pivots.sum(-1))
    most = int(n_pivots.max()) if most is None else most
    image, valid = tokens.image.clamp(min=0), tokens.valid
    states = tokens.hidden if tokens.keys is None else tokens.keys
    norms = l1_norms(states, valid, counts.places(valid))
    rank = ranks(norms, valid, None if counts.images == 1 else image)
    # The pivot of rank r of image m goes to slot m P + r of the row, all others behind the last.
    n_slots = n_pivots.shape[-1] * most
    slot = torch.where(rank < n_pivots.gather(-1, image), image * most + rank, n_slots)
    return _placed(slot, n_slots).view(*n_pivots.shape, most)


def text_pivots(tokens: Tokens, n_pivots: int, counts: Counts | None = None) -> Tensor:
    """[B, P] indices of the text pivots, in descending order of norm; -1 for fewer pivots."""
    states, valid = tokens.text_hidden, tokens.text_valid
    states = states if tokens.text_keys is None else tokens.text_keys
    if states is None or valid is None:
        return tokens.image.new_empty(len(tokens.image), 0)
    counts = counts or counts_of(tokens, tokens.n_original)
    rank = ranks(l1_norms(states, valid, counts.text_places(valid)), valid)
    n_pivots = min(n_pivots, rank.shape[-1])
    return _placed(rank.clamp(max=n_pivots), n_pivots)


def _placed(slot: Tensor, n_slots: int) -> Tensor:
    table = slot.new_full((len(slot), n_slots + 1), -1)
    places = torch.arange(slot.shape[-1], device=slot.device).expand_as(slot)
    return table.scatter_(-1, slot, places)[:, :n_slots]


def distances_to(tokens: Tokens, pivots: Tensor, texts: Tensor, counts: Counts) -> Tensor:
    """[B, N, P + P'] cosine distance of each token to its image's pivots and to the text pivots.

    The decoder's final norm is applied to the states first. Columns without a pivot hold any
    number.
    """
    n_pivots, n_own = pivots.shape[-1], pivots[0].numel()
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    n_columns = n_own + texts.shape[-1]
    result = tokens.hidden.new_zeros(*tokens.valid.shape, n_columns, dtype=wide)
    for b, at in enumerate(counts.places(tokens.valid)):
        # What a row computes depends on its own counts only: on those of its images and its text.
        own = pivots[b, : max(1, counts.n_images[b]), : counts.n_keep[b]]  # [M_b, P_b]
        said = texts[b, : counts.n_text[b]]
        far = _row_distances(tokens, b, at, own.flatten(), said)
        if n_own:
            by_image = result[b, :, :n_own].unflatten(-1, (-1, n_pivots))
            of_own = far[:, : own.numel()].unflatten(-1, own.shape)
            by_image[at, : len(own), : own.shape[1]] = of_own
        result[b, at, n_own : n_own + len(said)] = far[:, own.numel() :]
    if counts.images == 1:
        return result
    image = tokens.image.clamp(min=0)
    own = image[..., None] * n_pivots + torch.arange(n_pivots, device=image.device)
    return torch.cat((result.gather(-1, own), result[..., n_own:]), dim=-1)


def _row_distances(
    tokens: Tokens, b: int, at: slice | Tensor, pivots: Tensor, texts: Tensor
) -> Tensor:
    """[n, P] distances of the tokens of one row to its pivots, text pivots last."""
    norm = tokens.final_norm or (lambda x: x)
    row, wide = tokens.hidden[b], torch.promote_types(tokens.hidden.dtype, torch.float32)
    chosen = [norm(row[pivots.clamp(min=0)])]
    if len(texts):
        assert tokens.text_hidden is not None
        chosen.append(norm(tokens.text_hidden[b][texts]))
    to = directions(torch.cat(chosen).to(wide))
    return _joined([distances(directions(norm(part).to(wide)), to) for part in _blocks(row[at])])


def visit_order(pivots: Tensor, texts: Tensor) -> Tensor:
    """[B, M, P + P'] columns of ``distances_to``: image pivots, then text pivots, then -1."""
    texts = texts[:, None].expand(-1, pivots.shape[1], -1)
    both = torch.cat((pivots, texts), dim=-1)
    column = torch.arange(both.shape[-1], device=both.device).expand_as(both)
    order = (both < 0).long().argsort(dim=-1, stable=True)
    return torch.where(both.gather(-1, order) >= 0, column.gather(-1, order), -1)
