"""Limits on what a plan may lose, and how far a plan exceeds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tpcal.plans.errors import GuardrailError, UsageError, excerpt

Losses = Mapping[str, float]


@dataclass(frozen=True)
class LossLimits:
    """The limits of a plan; None sets no limit.

    A loss is the worst group's, as a mean hides a group that is ruined. Changed answers are
    counted over all samples, as in a certificate, unless each group is asked for.
    """

    max_loss: float | None = None
    """Nats per answer token that the worst group may lose."""
    max_flips: float | None = None
    """Share of answers that may change."""
    each_group: bool = False
    """Whether ``max_flips`` limits every group instead of all samples together."""

    def check(self) -> None:
        """Checks the limits.

        Raises:
            UsageError: There is no limit, or one is negative, infinite or, as a share, above 1.
        """
        if self.max_loss is None and self.max_flips is None:
            raise UsageError("max_loss or max_flips must be given; got neither.")
        if self.max_loss is not None and not 0 <= self.max_loss < math.inf:
            raise UsageError(f"max_loss must be 0 or more nats; got {self.max_loss}.")
        if self.max_flips is not None and not 0 <= self.max_flips <= 1:
            raise UsageError(f"max_flips must be in [0, 1]; got {self.max_flips}.")

    @property
    def nothing(self) -> bool:
        """Whether only a plan that changes nothing is within the limits."""
        return self.max_loss == 0 or self.max_flips == 0

    def times(self, losses: Losses, flips: Losses, sizes: Mapping[str, int]) -> float:
        """The loss divided by its limit: at most 1 within the limits, the larger of two ratios.

        Args:
            losses: Nats per group.
            flips: Share of changed answers per group.
            sizes: Samples of each group.
        """
        found = [0.0]
        if self.max_loss is not None:
            found.append(_over(max(losses.values()), self.max_loss))
        if self.max_flips is not None:
            found.append(_over(self.changed(flips, sizes), self.max_flips))
        return max(found)

    def changed(self, flips: Losses, sizes: Mapping[str, int]) -> float:
        """The share of changed answers that is limited."""
        if self.each_group:
            return max(flips.values())
        return sum(flips[g] * sizes[g] for g in flips) / sum(sizes[g] for g in flips)

    def guard(self, losses: Losses, flips: Losses, sizes: Mapping[str, int], kind: str) -> None:
        """Refuses a plan that exceeds a limit; arguments as `times`.

        Args:
            kind: ``measured`` or ``predicted``, as the error says it.

        Raises:
            GuardrailError: The plan loses more; the message names the group.
        """
        worst = max(losses, key=lambda group: losses[group])
        if self.max_loss is not None and not losses[worst] <= self.max_loss:
            raise GuardrailError(
                f"The worst group must lose at most {self.max_loss:g} nats; got "
                f"{losses[worst]:.4g} ({kind}) on {excerpt(worst)}. Ask for a larger budget, or "
                "allow more loss."
            )
        if self.max_flips is None:
            return
        share = self.changed(flips, sizes)
        most = excerpt(max(flips, key=lambda group: flips[group]))
        if not share <= self.max_flips:
            where = f"in {most}" if self.each_group else f"over all samples, most in {most}"
            raise GuardrailError(
                f"At most {self.max_flips:g} of the answers must change; got {share:.4g} "
                f"({kind}) {where}. Ask for a larger budget, or allow more."
            )


def _over(value: float, limit: float) -> float:
    if value <= 0:
        return 0.0
    return value / limit if limit > 0 else math.inf
