"""Means of the visual tokens that a plan kept, over the prompts it ran on."""

from __future__ import annotations

from dataclasses import dataclass

from tpcal.plans.cost import layer_average_keep
from tpcal.plans.executor.handle import Report
from tpcal.plans.plan_records import entering


@dataclass
class Tally:
    """Sums over prompts with an image. With beam search, every beam counts as a prompt.

    Args:
        n_layers: Number of decoder layers.
    """

    n_layers: int
    n_rows: int = 0
    """Number of prompts counted."""
    _keep: float = 0.0
    _visual: int = 0

    def add(self, report: Report) -> None:
        """Adds the rows of one prefill to the sums."""
        for n_visual, counts in zip(report.n_visual, report.counts(), strict=True):
            if n_visual:
                self.n_rows += 1
                self._visual += n_visual
                schedule = entering(n_visual, counts, self.n_layers)
                self._keep += layer_average_keep(schedule, n_visual)

    @property
    def layer_average_keep(self) -> float | None:
        """Mean over prompts of the layer average of keep; None before the first prompt."""
        return self._keep / self.n_rows if self.n_rows else None

    @property
    def visual_tokens(self) -> float | None:
        """Mean number of visual tokens before the first cut; None before the first prompt."""
        return self._visual / self.n_rows if self.n_rows else None
