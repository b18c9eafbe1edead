"""View of `tpcal verify`: the stated and the measured loss of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.plans.formats import count, nats
from tpcal.views.tables import WORST, heading, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.loss_tests import LossTest
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
    return Group(heading(title), table, *map(Text, _sentences(found.tests)))


def _sentences(tests: Sequence[LossTest]) -> Iterator[str]:
    from tpcal.calibrate.evaluation.loss_tests import LEAST

    if any(test.p is None for test in tests):
        yield f"Groups without p have fewer than {LEAST} samples and are not tested by themselves."
    if any(test.is_worse for test in tests):
        yield "The plan loses more than it states."
    else:
        yield "These samples do not show that the plan loses more than it states."
