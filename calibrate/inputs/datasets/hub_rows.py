"""The rows of a named data set, loaded with `datasets` from the Hub or from a local copy of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcal.calibrate.inputs.cells import text_of
from tpcal.calibrate.inputs.data_errors import explained
from tpcal.calibrate.inputs.datasets.catalog import ImageTable, NamedDataset, lite
from tpcal.calibrate.inputs.datasets.standard_rows import StandardRows
from tpcal.calibrate.inputs.sources import ROLES, order, undecoded
from tpcal.calibrate.inputs.streams import SHUFFLED, in_random_order
from tpcal.calibrate.inputs.text_files import Row
from tpcal.plans import hub
from tpcal.plans.errors import UsageError, listed
from tpcal.plans.extras import require

FOLDER = "TPCAL_DATASETS"
"""Environment variable that names a folder with local copies, as ``FOLDER/org/name``."""


@dataclass(frozen=True)
class HubRows:
    """Rows of a data set, and the order in which samples are drawn from them."""

    rows: StandardRows
    order: Iterable[int]
    """It can be read once."""
    n_rows: int
    """Number of rows that can be drawn from."""


def hub_rows(dataset: NamedDataset, *, split: str, seed: int) -> HubRows:
    """The rows of a data set, in the order in which samples are drawn.

    A small data set is loaded whole and kept in the cache of `datasets`. A larger one is streamed,
    so that only the rows near those that are drawn are fetched.

    Args:
        dataset: A data set of the catalog.
        split: The role ``calibration`` or ``eval``; they share no rows, unless a small data set
            has fewer than the two need together.
        seed: Seed of the order.

    Raises:
        UsageError: The data set cannot be loaded, or its columns are others.
    """
    place = place_of(dataset)
    images = None if dataset.images is None else _images(dataset, dataset.images)
    if dataset.rows is None or dataset.rows <= SHUFFLED:
        loaded = _load(dataset, place, streaming=False)
        rows = StandardRows(dataset, loaded, images)
        return HubRows(rows, order(len(rows), split, seed).tolist(), len(rows))
    stream, part = _load(dataset, place, streaming=True), list(ROLES).index(split)
    fetched = in_random_order(dataset.name, stream, seed, part)
    return HubRows(StandardRows(dataset, fetched, images), fetched.numbers(), dataset.rows // 2)


def n_rows_of(dataset: NamedDataset) -> int | None:
    """The number of rows of the data set as its repository states it; None if it does not."""
    import datasets

    with explained(dataset.name):
        built = datasets.load_dataset_builder(place_of(dataset), dataset.configuration)
        split = (built.info.splits or {}).get(dataset.split)
        return split.num_examples if split else None


def place_of(dataset: NamedDataset, repository: str | None = None) -> str:
    """The local copy of the data set's repository, or its id on the Hub.

    Raises:
        UsageError: There is no local copy, and the Hub cannot be reached.
    """
    require("plan", "datasets")
    from huggingface_hub import constants

    repository = repository or dataset.repository
    folder = os.environ.get(FOLDER)
    if folder and (Path(folder) / repository).is_dir():
        return str(Path(folder) / repository)
    if hub.reachable() or constants.is_offline_mode():  # offline, `datasets` reads its cache
        return repository
    raise UsageError(_download(dataset, repository))


def _download(dataset: NamedDataset, repository: str) -> str:
    get = f"hf download {repository} --repo-type dataset --local-dir DIR/{repository}"
    # The mix `lite` needs all of its repository. Of others, which can be a hundred times larger,
    # the card and the folders of the configurations are enough.
    if dataset.name not in lite() or repository != dataset.repository:
        tables = [table for table in (dataset, dataset.images) if table is not None]
        parts = [t.configuration for t in tables if t.repository == repository and t.configuration]
        only = ["README.md", *(f"{part}/*" for part in parts)] if parts else []
        get += "".join(f' --include "{pattern}"' for pattern in only)
    return (
        f"{dataset.name} needs {repository} of the Hugging Face Hub, which cannot be reached. "
        f"Where it can, run '{get}', bring DIR here and set {FOLDER}=DIR; or name questions of "
        "your own with --data FILE."
    )


def _load(dataset: NamedDataset, place: str, *, streaming: bool) -> Any:
    import datasets

    with explained(dataset.name):
        loaded = datasets.load_dataset(
            place, dataset.configuration, split=dataset.split, streaming=streaming
        )
        columns = tuple(loaded.features or ()) or tuple(next(iter(loaded)))
    missing = [column for column in dataset.columns if column not in columns]
    if missing:
        raise UsageError(
            f"{dataset.name} ({dataset.repository}) must have the columns {listed(missing)}; got "
            f"{listed(columns)}. Its form on the Hub has changed: report this, or name the data "
            f"with --data {dataset.repository} and its columns."
        )
    with explained(dataset.name):
        return _only(dataset, undecoded(loaded))


def _only(dataset: NamedDataset, loaded: Any) -> Any:
    """The rows whose cells are as the catalog wants them."""
    if not dataset.leaves_out:
        return loaded

    def wanted(*cells: Any) -> bool:
        row = dict(zip(columns, cells, strict=True))
        return all(text_of(row[column]) == cell for column, cell in dataset.only.items()) and all(
            int(row[column]) < limit for column, limit in dataset.below.items()
        )

    columns = [*dataset.only, *dataset.below]
    return loaded.filter(wanted, input_columns=columns)


def _images(dataset: NamedDataset, table: ImageTable) -> dict[str, Any]:
    """Encoded images by name."""
    import datasets

    place = place_of(dataset, table.repository)
    with explained(f"{dataset.name} (images)"):
        loaded = datasets.load_dataset(place, table.configuration, split=table.split)
        rows: Sequence[Row] = undecoded(loaded.select_columns([table.key, table.image]))
        return {text_of(row[table.key]): row[table.image] for row in rows}
