"""View of `tpcal verify`: the stated and the measured loss of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.views.formats import WORST, count, heading, nats, table_of

if TYPE_CHECKING:
    from tpcal.workflow.verification import PlanVerification


def verification_view(found: PlanVerification) -> RenderableType:
    """A table of all samples and the groups, and what it means."""
    samples = found.samples
    table = table_of("group", "samples", "stated, nats", "measured, nats", "p (Holm)")
    for test in found.tests:
        p = "–" if test.p is None else f"{test.p:.3f}"
        style = WORST if test.is_worse else ""
        figures = (str(test.n), nats(test.recorded), nats(test.measured), p)
        table.add_row(test.group, *figures, style=style)
    title = f"{found.name} on {samples.name}, {count(len(samples), 'new sample')}"
    verdict = "loses more than it states" if found.worse else "loses no more than it states"
    return Group(heading(title), table, Text(f"The plan {verdict}."))
