"""View of what a calibration will measure, and of the memory and time that it will take."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.plans.formats import count
from tpcal.views.tables import QUIET, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.workflow.calibration import CalibrationForecast

_MINUTE_S, _HOUR_S = 60, 3600


def forecast_view(found: CalibrationForecast) -> RenderableType:
    """A table of the groups with their samples and metrics, then memory and time."""
    samples, estimate = found.samples, found.estimate
    table = table_of("group", Right("samples"), "metric")
    metrics: dict[str, str] = {}
    for sample in samples:
        metrics.setdefault(sample.group, sample.metric)
    for group, n in sorted(Counter(samples.sample_groups).items()):
        table.add_row(group, str(n), metrics[group])
    n_rows = samples.source.n_rows
    rows = "" if n_rows is None else f", of {n_rows:,} rows"
    least, most = duration(estimate.least_s), duration(estimate.most_s)
    time = f"about {most}" if least == most else f"between {least} and {most}"
    return Group(
        heading(f"{found.model} on {samples.description}{rows}"),
        table,
        Text(found.memory),
        Text(f"Time: {time} on this machine, for up to {count(estimate.n_probes, 'probe')}."),
        Text("Nothing was written. Run the command without --dry-run.", QUIET),
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, rounded."""
    if seconds < 2 * _MINUTE_S:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * _HOUR_S:
        return f"{round(seconds / _MINUTE_S)} min"
    return f"{seconds / _HOUR_S:.1f} h"
