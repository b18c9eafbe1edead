"""What a plan pruned, measured over the prompts it ran on."""

from __future__ import annotations

from dataclasses import dataclass

from tpcal.plans.cost import layer_average_keep
from tpcal.plans.execute import Report


@dataclass
class Tally:
    """Sums over prompts with an image. With beam search every beam counts."""

    n_layers: int
    n_rows: int = 0
    _keep: float = 0.0
    _visual: int = 0

    def add(self, report: Report) -> None:
        """Counts the rows of one prefill."""
        for row, n_visual in enumerate(report.n_visual):
            if n_visual:
                self.n_rows += 1
                self._visual += n_visual
                self._keep += layer_average_keep(self._schedule(report, row), n_visual)

    @property
    def layer_average_keep(self) -> float | None:
        """Mean over prompts; None before the first one."""
        return self._keep / self.n_rows if self.n_rows else None

    @property
    def visual_tokens(self) -> float | None:
        """Mean number in a prompt before the first cut; None before the first prompt."""
        return self._visual / self.n_rows if self.n_rows else None

    def _schedule(self, report: Report, row: int) -> list[int]:
        """[L] visual tokens entering each layer."""
        left = {cut.layer: int(cut.stays[row].sum()) for cut in report.cuts}
        entering = [report.n_visual[row]]
        for layer in range(self.n_layers):
            entering.append(left.get(layer, entering[-1]))
        return entering[1:]
