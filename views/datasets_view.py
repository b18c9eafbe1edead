"""Views of the data sets that have names, and of what matched on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tpcal.calibrate.inputs.datasets.catalog import LITE
from tpcal.calibrate.inputs.sample_size import DEFAULT_N, LEAST_OF_GROUP
from tpcal.plans.errors import excerpt
from tpcal.plans.formats import count
from tpcal.views.tables import WORST, Right, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.datasets.catalog import NamedDataset
    from tpcal.calibrate.inputs.datasets.hub_check import VerifiedDataset


def datasets_table(datasets: Sequence[NamedDataset]) -> Table:
    """A table of data sets with rows, group, metric and licence."""
    table = table_of("data set", Right("rows"), "asks", "group", "metric", "licence")
    for dataset in datasets:
        rows = f"{dataset.rows:,}" if dataset.rows else "hundreds"
        table.add_row(
            dataset.name, rows, dataset.title, dataset.group, dataset.metric, dataset.licence
        )
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    n, least = DEFAULT_N["calibration"], LEAST_OF_GROUP
    table.caption = (
        f"{LITE} = all names that end in _lite, in equal parts.\nDrawn by default: {n} samples, "
        f"at least {least} of each data set; for an evaluation {DEFAULT_N['eval']}."
    )
    table.caption_justify = "left"
    return table


def verified_line(found: VerifiedDataset) -> Text:
    """One line that says what of a data set matched."""
    name = found.dataset.name
    if found.problem is not None:
        return Text(found.problem, WORST)  # names the data set
    assert found.sample is not None
    rows = "unknown number of rows" if found.n_rows is None else count(found.n_rows, "row")
    if not found.matches:
        rows += f", {found.dataset.rows:,} expected"
    elif found.dataset.leaves_out and found.n_rows is not None:
        rows += f" (not compared, as rows whose {found.dataset.leaves_out} are left out)"
    asked, answers = found.sample.question, found.sample.right_answers
    text = (
        f"{name}: {rows}; {count(len(found.dataset.columns), 'column')} found; asks "
        f"{excerpt(asked)!r}; answered {excerpt(answers[0])!r}"
    )
    text += f" and {len(answers) - 1} more" if answers[1:] else ""
    return Text(f"{text}.", "" if found.matches else WORST)
