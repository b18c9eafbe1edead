"""Which positions of the conversation the K and V of a cache layer hold.

A *position* counts all tokens that a layer's cache has seen, dropped or not: 0..n_seen-1. It is
the number by which the model rotates a token and builds its masks. A *column* counts what K and V
physically hold: 0..n_held-1. `Held` maps columns to positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Held:
    """Which positions a cache layer holds; immutable, shared by the layers between two cuts.

    The columns are those of ``index`` followed by ``n_tail`` consecutive positions that end before
    ``n_seen``. A generated token only raises two numbers: no tensor is made until a mask needs
    one. For example, positions 0, 1, 3, 5 of a prompt and two generated tokens:

        Held(index=[[0, 1, 3, 5]], valid=None, n_seen=8, n_tail=2)   # 0 1 3 5 6 7

    What follows from an object is kept in it, so the layers that share it compute it once.

    Args:
        index: [B, K] int64 positions, ascending; any seen position on filler.
        valid: [B, K] bool, False on filler, which stands on the left; None if there is no filler.
        n_seen: Number of tokens that the layer has seen, dropped ones included.
        n_tail: Number of consecutive positions after ``index``.
        log_sizes: [B, K] what attention adds to the logits of these columns; None if nothing. It
            adds nothing to those of consecutive positions.
    """

    def __init__(
        self,
        index: Tensor,
        valid: Tensor | None,
        n_seen: int,
        n_tail: int,
        log_sizes: Tensor | None = None,
    ) -> None:
        self.index = index
        self.valid = valid
        self.n_seen = n_seen
        self.n_tail = n_tail
        self.log_sizes = log_sizes
        self._memo: dict[Any, tuple[Any, Any]] = {}

    @classmethod
    def recent(cls, n_rows: int, n_seen: int, n_held: int, device: torch.device) -> Held:
        """The last ``n_held`` of the first ``n_seen`` positions: what an unpruned layer holds."""
        empty = torch.empty(n_rows, 0, dtype=torch.int64, device=device)
        return cls(empty, None, n_seen, n_held)

    @property
    def n_held(self) -> int:
        """Columns of K and V, filler included."""
        return self.index.shape[1] + self.n_tail

    @property
    def has_mask(self) -> bool:
        """Whether a query that comes after all columns needs a mask for them."""
        return self.valid is not None or self.log_sizes is not None

    def to(self, device: torch.device) -> Held:
        """The columns on a device; the same object if they are there already."""
        if self.index.device == device:
            return self
        if ("to", device) not in self._memo:
            valid, sizes = (
                None if one is None else one.to(device) for one in (self.valid, self.log_sizes)
            )
            moved = Held(self.index.to(device), valid, self.n_seen, self.n_tail, sizes)
            self._memo["to", device] = None, moved
        return self._memo["to", device][1]

    def positions(self) -> Tensor:
        """[B, n_held] int64 position of each column."""
        if not self.n_tail:
            return self.index
        if "positions" not in self._memo:
            first = self.n_seen - self.n_tail
            tail = torch.arange(first, self.n_seen, device=self.index.device)
            tail = tail.expand(self.index.shape[0], -1)
            self._memo["positions"] = None, torch.cat([self.index, tail], dim=1)
        return self._memo["positions"][1]

    def mask(self) -> Tensor | None:
        """[B, n_held] bool, False on filler; None if there is no filler."""
        if self.valid is None or not self.n_tail:
            return self.valid
        if "mask" not in self._memo:
            tail = self.valid.new_ones(self.valid.shape[0], self.n_tail)
            self._memo["mask"] = None, torch.cat([self.valid, tail], dim=1)
        return self._memo["mask"][1]

    def added(self) -> Tensor | None:
        """[B, n_held] what attention adds to the logits of each column; None if nothing."""
        if self.log_sizes is None or not self.n_tail:
            return self.log_sizes
        if "added" not in self._memo:
            padded = torch.nn.functional.pad(self.log_sizes, (0, self.n_tail))
            self._memo["added"] = None, padded
        return self._memo["added"][1]

    def extended(self, n_new: int) -> Held:
        """The columns after ``n_new`` more positions are seen and all of them kept."""
        if ("extended", n_new) not in self._memo:
            n_seen, n_tail = self.n_seen + n_new, self.n_tail + n_new
            after = Held(self.index, self.valid, n_seen, n_tail, self.log_sizes)
            self._memo["extended", n_new] = None, after
        return self._memo["extended", n_new][1]

    def joined(
        self, columns: Tensor, valid: Tensor | None, n_new: int, log_sizes: Tensor | None = None
    ) -> Held:
        """The columns after ``n_new`` more positions are seen and ``columns`` of them kept.

        Args:
            columns: [B, m] int64 places within the new positions, ascending.
            valid: [B, m] bool, False on filler; None if there is no filler.
            n_new: Number of new positions, S.
            log_sizes: [B, m] what attention adds to the logits of these columns; None if nothing.
        """
        # The new tokens' places start at 0, their positions at n_seen. Filler of this prompt now
        # stands between the columns of two turns: `valid` hides it there too.
        key = "joined", id(columns), id(log_sizes)
        if key not in self._memo:
            if self.n_seen:
                index = torch.cat([self.positions(), columns + self.n_seen], dim=1)
                masks = _cat(self.mask(), valid, self.n_held, columns, True)
                sizes = _cat(self.added(), log_sizes, self.n_held, columns, 0)
                after = Held(index, masks, self.n_seen + n_new, 0, sizes)
            else:
                after = Held(columns, valid, n_new, 0, log_sizes)
            self._memo[key] = (columns, log_sizes), after
        return self._memo[key][1]

    def within(self, window: int) -> Held:
        """The columns without leading ones that no later query sees through a sliding window.

        A later query sees the last ``window - 1`` positions and itself. A column stays if any row
        needs it. It also stays if finding out would have to wait for the device, because masks
        hide what is out of sight.

        Args:
            window: Number of positions, the query's own included.
        """
        n_recent = window - 1
        # The tail alone fills the window: everything before it is out of sight, without a look.
        if self.n_tail >= n_recent:
            return Held(self.index[:, :0], None, self.n_seen, n_recent)
        # In the middle of decoding the index stays whole; looking at it each step would cost a
        # wait.
        if self.n_tail or not self.index.shape[1]:
            return self
        if ("within", window) not in self._memo:
            sees = self.index >= self.n_seen - n_recent
            if self.valid is not None:
                sees &= self.valid
            # cumprod counts the leading columns out of sight of a row; the smallest count decides.
            n_gone = int((~sees).long().cumprod(dim=1).sum(dim=1).min())
            valid = None if self.valid is None else self.valid[:, n_gone:]
            sizes = None if self.log_sizes is None else self.log_sizes[:, n_gone:]
            rest = Held(self.index[:, n_gone:], valid, self.n_seen, 0, sizes)
            self._memo["within", window] = None, rest
        return self._memo["within", window][1]

    def filling(self, n_columns: int) -> Held:
        """The last ``n_columns`` columns, with filler on the left if there are fewer."""
        if ("filling", n_columns) not in self._memo:
            valid = self.mask()
            if valid is None:
                valid = torch.ones_like(self.positions(), dtype=torch.bool)
            # Padding by a negative number cuts off.
            pad = (n_columns - self.n_held, 0)
            index = torch.nn.functional.pad(self.positions(), pad)
            sizes = self.added()
            sizes = None if sizes is None else torch.nn.functional.pad(sizes, pad)
            held = Held(index, torch.nn.functional.pad(valid, pad), self.n_seen, 0, sizes)
            self._memo["filling", n_columns] = None, held
        return self._memo["filling", n_columns][1]

    def selected(self, rows: Tensor) -> Held:
        """The columns of the batch rows ``rows`` [B'] int64, in that order."""
        key = "selected", id(rows)
        if key not in self._memo:
            at = rows.to(self.index.device)
            valid, sizes = (
                None if one is None else one[at] for one in (self.valid, self.log_sizes)
            )
            taken = Held(self.index[at], valid, self.n_seen, self.n_tail, sizes)
            self._memo[key] = rows, taken
        return self._memo[key][1]

    def cropped(self, n_gone: int) -> tuple[Held, Tensor | None]:
        """The columns without the last ``n_gone`` positions.

        Returns:
            The rest, and [B, K'] int64 columns to gather from K and V; None if the last ``n_gone``
            columns are the ones that go.
        """
        # Positions of the tail are columns, so cropping it is cutting off the end. Below that,
        # some of the positions were dropped long ago: the columns to keep are found by their
        # positions.
        n_seen = self.n_seen - n_gone
        if n_gone <= self.n_tail:
            n_tail = self.n_tail - n_gone
            return Held(self.index, self.valid, n_seen, n_tail, self.log_sizes), None
        stays = self.positions() < n_seen
        mask = self.mask()
        if mask is not None:
            stays &= mask
        # Rows may have kept different numbers of the rest, so they are aligned on the right again.
        n_row = stays.sum(dim=1)
        n_held = int(n_row.max())
        columns = right_aligned(stays, n_held)
        valid = None if bool((n_row == n_held).all()) else stays.gather(1, columns)
        # Filler may carry a position that is gone; it must be a seen one, as masks are read there.
        index = self.positions().gather(1, columns).clamp(max=max(n_seen - 1, 0))
        sizes = self.added()
        sizes = None if sizes is None else sizes.gather(1, columns)
        return Held(index, valid, n_seen, 0, sizes), columns


def right_aligned(stays: Tensor, n_columns: int) -> Tensor:
    """[B, n_columns] indices where ``stays`` [B, N] is True, ascending, filler on the left."""
    # A stable sort of 0 (False) and 1 (True) puts the True ones last and keeps their order.
    order = stays.view(torch.uint8).argsort(dim=1, stable=True)
    return order[:, order.shape[1] - n_columns :]


def _cat(
    before: Tensor | None, after: Tensor | None, n_before: int, columns: Tensor, missing: float
) -> Tensor | None:
    """[B, n_before + m] values of the columns held and of new ones; None if neither has any.

    Args:
        before: [B, n_before] values of the columns held.
        after: [B, m] values of the new ones.
        n_before: Number of columns held.
        columns: [B, m] of the new ones.
        missing: The value of columns without one.
    """
    known = after if before is None else before
    if known is None:
        return None
    if before is None:
        before = known.new_full((columns.shape[0], n_before), missing)
    if after is None:
        after = known.new_full(columns.shape, missing)
    return torch.cat([before, after], dim=1)
