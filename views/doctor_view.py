"""View of an installation: what works, what is missing, and how to install it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tpcal.views.tables import QUIET, WORST, table_of
from tpcal.workflow.installation import Part

_STYLES = {"works": "", "untried": WORST, "missing": QUIET, "broken": WORST}


def doctor_view(parts: Sequence[Part]) -> Table:
    """A line for each part; the command that installs a missing one stands below it."""
    table = table_of("part", "state", "found")
    for part in parts:
        found = "\n".join(filter(None, (part.found, part.way_out)))
        table.add_row(part.name, Text(part.state, style=_STYLES[part.state]), found)
    return table


def doctor_data(parts: Sequence[Part]) -> dict[str, Any]:
    """The parts by name, as plain data."""
    return {
        part.name: {"state": part.state, "found": part.found, "way_out": part.way_out}
        for part in parts
    }
