"""Data sets as tables of raw rows: from text files, or loaded with `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tpcal.calibrate.inputs.data_errors import explained
from tpcal.calibrate.inputs.streams import BLOCK, SHUFFLED, StreamedRows, in_random_order
from tpcal.calibrate.inputs.text_files import Row, read_rows
from tpcal.plans import hub
from tpcal.plans.errors import UsageError, listed
from tpcal.plans.extras import require

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
ROLES: Mapping[str, tuple[str, ...]] = {
    "calibration": ("calibration", "train", "training"),
    "eval": ("eval", "test", "testing", "validation", "valid", "val", "dev"),
}
"""Names of splits to look for, in this order, if a role is given instead of a split's own name."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""Files that hold the question of each image of a folder, with the names that `datasets` uses."""


@dataclass(frozen=True)
class RawTable:
    """The raw rows of one split, in the order of the data or, if streamed, in a random one."""

    name: str
    rows: Sequence[Row]
    """The rows; a row may lack columns."""
    columns: tuple[str, ...]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the classes of columns that hold class numbers."""
    folder: Path | None = None
    """Folder of relative image paths."""
    n_streamed: int | None = None
    """Number of rows that a stream has for the role, if the data set states its size."""

    @property
    def n_rows(self) -> int | None:
        """Number of rows that can be drawn from; None if that is unknown."""
        return self.n_streamed if isinstance(self.rows, StreamedRows) else len(self.rows)

    def order(self, split: str, seed: int) -> Iterable[int]:
        """Row numbers in the random order in which samples are drawn."""
        if isinstance(self.rows, StreamedRows):
            return self.rows.numbers()
        return order(len(self.rows), split, seed).tolist()


def load_table(data: str, *, split: str, seed: int) -> RawTable:
    """The rows of a data set.

    Args:
        data: A .jsonl, .json, .parquet or .csv file; a folder (with one such file, as saved by
            `datasets`, or an image folder with metadata); or a Hub id ``org/name``,
            ``org/name:config``, ``org/name@revision``. A Hub data set is streamed, unless it is
            small.
        split: A split's name, or one of `ROLES`; the only split of a data set serves every role,
            and the roles share no rows of a stream.
        seed: Seed of the order of streamed rows.

    Raises:
        UsageError: The data is missing, unreadable or empty, or has no such split.

    Example:
        >>> table = load_table("questions.jsonl", split="eval", seed=0)  # doctest: +SKIP
        >>> table.columns, table.n_rows  # doctest: +SKIP
    """
    # What exists on disk is read from there; a path that does not exist is an error, and only
    # the form org/name is looked up on the Hub.
    path = Path(data).expanduser()
    if path.is_file():
        return _file(path, _role(split, path))
    if path.is_dir():
        return _folder(path, split)
    looks_local = path.is_absolute() or data.startswith((".", "~")) or path.suffix in FORMATS
    if looks_local or data.count("/") != 1:
        raise UsageError(
            f"No data at {data}. Give a .jsonl, .json, .parquet or .csv file, a folder, a Hub "
            "id (org/name), or a name that 'tpcal datasets' lists."
        )
    return _hub(data, split, seed)


def order(n_rows: int, split: str, seed: int) -> np.ndarray:
    """[n_rows] row numbers in the random order in which samples are drawn.

    The role ``eval`` draws from the other end of the same order. So calibration and evaluation
    share no rows of data with a single split, unless the two together need more rows than it has,
    or than a small group has, as groups take turns.

    Example:
        >>> from tpcal.calibrate.inputs.sources import order
        >>> bool((order(9, "eval", seed=0) == order(9, "calibration", seed=0)[::-1]).all())
        True
    """
    drawn = np.random.default_rng(seed).permutation(n_rows)
    return drawn[::-1] if split == "eval" else drawn


def _role(split: str, path: Path) -> str:
    """The role that a file with a single split serves.

    Raises:
        UsageError: A split of its own is asked for.
    """
    if split not in ROLES:
        raise UsageError(
            f"{path} has one split, of which {listed(list(ROLES))} take rows from both ends; got "
            f"the split {split}. Leave --split out."
        )
    return split


def _file(path: Path, split: str) -> RawTable:
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(
            f"{path} must be a {', '.join(FORMATS)} file; got {path.suffix or 'no suffix'}."
        )
    if path.stat().st_size == 0:
        raise UsageError(f"{path} must hold samples; got an empty file.")
    if kind == ".parquet":
        require("plan", "datasets")
        import datasets

        with explained(str(path)):
            loaded = datasets.load_dataset("parquet", data_files=str(path), split="train")
        return _pick(path.name, loaded, split, path.parent)
    rows, columns = read_rows(path)
    if not rows:
        raise UsageError(f"{path} must hold samples; got none.")
    return RawTable(path.name, rows, columns, {}, path.parent)


def _folder(path: Path, split: str) -> RawTable:
    require("plan", "datasets")
    import datasets

    # In this order: a data set saved by `datasets`; a text file named after the wanted split, or
    # the only file; an image folder with metadata; anything else that `datasets` can load.
    files = sorted(
        f for f in path.iterdir() if f.suffix.lower() in FORMATS and f.stem != "metadata"
    )
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        with explained(str(path)):
            return _pick(path.name, datasets.load_from_disk(str(path)), split, path)
    by_split = {file.stem: file for file in files if file.suffix.lower() != ".parquet"}
    own = [by_split[name] for name in ROLES.get(split, (split,)) if name in by_split]
    if own:
        return _file(own[0], split)
    if len(files) == 1:
        return _file(files[0], _role(split, files[0]))
    described = next((path / name for name in METADATA if (path / name).is_file()), None)
    if described and not any((path / name).is_dir() for name in sum(ROLES.values(), ())):
        return _described(described)
    if not any(path.iterdir()):
        raise UsageError(f"{path} must hold samples; got an empty folder.")
    with explained(str(path)):
        loaded = _as_written(datasets.load_dataset(str(path)), str(path))
    return _pick(path.name, loaded, split, path)


def _described(file: Path) -> RawTable:
    """The table of an image folder with metadata; its file names become the image column."""
    rows, columns = read_rows(file)
    name = "file_name"
    if name not in columns:
        raise UsageError(f"{file} must have a column {name!r}; got {listed(columns)}.")
    return RawTable(
        file.parent.name,
        [{"image" if k == name else k: v for k, v in row.items()} for row in rows],
        tuple("image" if column == name else column for column in columns),
        {},
        file.parent,
    )


def _as_written(loaded: Any, path: str, /, **how: Any) -> Any:
    """The same data, loaded again with every cell as text if it comes from CSV files."""
    import datasets

    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    first = next(iter(splits.values()))
    if first.info.builder_name != "csv":
        return loaded
    columns = list(first.features or _first_row(first))
    text = datasets.Features({column: datasets.Value("string") for column in columns})
    return datasets.load_dataset(path, features=text, na_filter=False, **how)


def _first_row(rows: Any) -> Mapping[str, Any]:
    """The first row; the file that it was streamed from is closed."""
    with closing(iter(rows)) as reading:
        found: Mapping[str, Any] = next(reading, {})
        return found


def _hub(data: str, split: str, seed: int) -> RawTable:
    require("plan", "datasets")
    import datasets
    from huggingface_hub import constants

    if not hub.reachable() and not constants.is_offline_mode():
        raise UsageError(
            f"Data set {data} is wanted from the Hugging Face Hub, which cannot be reached. Way "
            "out: pass a local folder or a .jsonl, .json, .parquet or .csv file."
        )
    name, revision = hub.split_revision(data)
    name, _, config = name.partition(":")
    with explained(data):
        how = {"name": config or None, "revision": revision, "streaming": True}
        loaded = _as_written(datasets.load_dataset(name, **how), name, **how)
        chosen = _split(data, loaded, split)
        # Calibration and evaluation divide the only split of a data set between them.
        part = list(ROLES).index(split) if len(loaded) == 1 and split in ROLES else None
        table = _table(data, chosen, None)
        stated = (chosen.info.splits or {}).get(str(chosen.split))
        return _streamed(table, stated.num_examples if stated else None, part, seed)


def _streamed(table: RawTable, n_rows: int | None, part: int | None, seed: int) -> RawTable:
    """The table of a stream, its rows in a random order; a small one as if it were a file.

    Args:
        table: The table, whose rows are a stream.
        n_rows: Number of its rows, if the data set states it.
        part: As `in_random_order`.
        seed: Seed of the order.
    """
    most = 2 * BLOCK if n_rows is None else n_rows
    if most <= SHUFFLED:
        first = list(islice(table.rows, most + 1))
        if len(first) <= most:
            return _filled(replace(table, rows=first))
    rows = in_random_order(table.name, table.rows, seed, part)
    return replace(table, rows=rows, n_streamed=n_rows and n_rows // (1 if part is None else 2))


def _pick(name: str, loaded: Any, split: str, folder: Path | None) -> RawTable:
    """The table of the wanted split of what `datasets` loaded.

    Raises:
        UsageError: There is no such split, or it is empty.
    """
    return _filled(_table(name, _split(name, loaded, split), folder))


def _filled(table: RawTable) -> RawTable:
    """The table, unless it has no rows."""
    if not len(table.rows):
        raise UsageError(f"{table.name} must hold samples; got none.")
    return table


def _split(name: str, loaded: Any, split: str) -> Any:
    """The wanted split of what `datasets` loaded.

    Raises:
        UsageError: There is no such split.
    """
    if not isinstance(loaded, dict):
        return loaded
    wanted = ROLES.get(split, (split,))
    found = [s for s in wanted if s in loaded] or (list(loaded) if len(loaded) == 1 else [])
    if not found or (split not in ROLES and split not in loaded):
        raise UsageError(f"{name} has no split {split!r}. It has: {listed(list(loaded))}.")
    return loaded[found[0]]


def _table(name: str, loaded: Any, folder: Path | None) -> RawTable:
    """The table of a split, its images left encoded so that an error names an image's row."""
    import datasets

    features = loaded.features or {}
    labels = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    columns = tuple(features) or tuple(_first_row(loaded))
    return RawTable(name, undecoded(loaded), columns, labels, folder)


def undecoded(loaded: Any) -> Any:
    """What `datasets` loaded, with images left encoded."""
    for column, feature in (loaded.features or {}).items():
        if (encoded := _encoded(feature)) != feature:
            loaded = loaded.cast_column(column, encoded)
    return loaded


def _encoded(feature: Any) -> Any:
    """The feature with its images left encoded at any depth; `datasets` would turn them."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return {name: _encoded(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return replace(feature, feature=_encoded(feature.feature))
    return feature
