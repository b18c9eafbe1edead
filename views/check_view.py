"""Views of `tpcal check`: that a plan is sound and fits a model, and which laws hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.plans.formats import count
from tpcal.plans.plan_records import Plan
from tpcal.views.tables import QUIET, WORST, heading, table_of

if TYPE_CHECKING:
    from tpcal.plans.laws import Verdict


def check_view(
    plan: Plan, title: str, model: str | None = None, engine: str | None = None
) -> RenderableType:
    """One line that states that the file is a valid plan, what model it fits and where it runs."""
    verdict = f"is a plan that fits {model}" if model else "is a well-formed plan"
    verdict += f" and runs in {engine}" if engine else ""
    facts = f"{count(len(plan.cuts), 'cut')}"
    if plan.budget:
        of = {"flops": "FLOPs ×", "kv": "KV bytes ×", "ms": "milliseconds"}
        facts += (
            f", {of.get(plan.budget.kind or '', 'layer-average keep')} {plan.budget.reached:.4f}"
        )
    return Text(f"✓ {title} {verdict}: {facts}.")


def laws_view(verdicts: Sequence[Verdict], *, title: str) -> RenderableType:
    """A table of the laws, whether each holds, and what was measured."""
    table = table_of("law", "holds", "what it says and what was measured")
    for verdict in verdicts:
        holds = {True: Text("yes"), False: Text("NO", style=WORST), None: Text("–", style=QUIET)}
        said = Text.assemble(verdict.law.says, "\n", (f"{verdict.detail}", QUIET))
        table.add_row(verdict.law.name, holds[verdict.holds], said)
    n_held = sum(verdict.holds is True for verdict in verdicts)
    n_tried = sum(verdict.holds is not None for verdict in verdicts)
    summary = f"{n_held} of {n_tried} laws hold."
    if n_tried < len(verdicts):
        summary += f" {len(verdicts) - n_tried} say nothing about this model (–)."
    note = (
        "Differences are of logits. Allowed is four times what rounding alone changes in this "
        "model without a plan: measured by moving every number that its modules give as rounding "
        "may move it, by chance; in half precision by batching, where that changes less."
    )
    return Group(heading(title), table, Text(), Text(summary), Text(note, style=QUIET))
