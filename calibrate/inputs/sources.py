"""Data sets as tables of raw rows: from text files, or loaded with `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tpcal.calibrate.inputs.text_files import Row, read_rows
from tpcal.plans import hub
from tpcal.plans.errors import UsageError, excerpt, listed
from tpcal.plans.extras import require

FORMATS = (".jsonl", ".json", ".parquet", ".csv")
ROLES: Mapping[str, tuple[str, ...]] = {
    "calibration": ("calibration", "train", "training"),
    "eval": ("eval", "test", "testing", "validation", "valid", "val", "dev"),
}
"""Names of splits to look for, in this order, if a role is given instead of a split's own name."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""Files that hold the question of each image of a folder, with the names that `datasets` uses."""
MIN_SHUFFLE = 1_000
"""Least number of rows of a streamed Hub data set among which samples are drawn."""


@dataclass(frozen=True)
class RawTable:
    """The raw rows of one split, in the order of the data."""

    name: str
    rows: Sequence[Row]
    """The rows; a row may lack columns."""
    columns: tuple[str, ...]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the classes of columns that hold class numbers."""
    folder: Path | None = None
    """Folder of relative image paths."""

    def __len__(self) -> int:
        return len(self.rows)


def load_table(data: str, *, split: str, n: int | None, seed: int) -> RawTable:
    """The rows of a data set.

    Args:
        data: A .jsonl, .json, .parquet or .csv file; a folder (with one such file, as saved by
            `datasets`, or an image folder with metadata); or a Hub id ``org/name``,
            ``org/name:config``, ``org/name@revision``.
        split: A split's name, or one of `ROLES`; the only split of a data set serves every role.
        n: Number of rows to fetch of a Hub data set, which is then streamed; None fetches all.
        seed: Seed of the choice of streamed rows.

    Raises:
        UsageError: The data is missing, unreadable or empty, or has no such split.

    Example:
        >>> table = load_table("questions.jsonl", split="eval", n=None, seed=0)  # doctest: +SKIP
        >>> table.columns, len(table)  # doctest: +SKIP
    """
    # What exists on disk is read from there; a path that does not exist is an error, and only
    # the form org/name is looked up on the Hub.
    path = Path(data).expanduser()
    if path.is_file():
        return _file(path, split)
    if path.is_dir():
        return _folder(path, split)
    looks_local = path.is_absolute() or data.startswith((".", "~")) or path.suffix in FORMATS
    if looks_local or data.count("/") != 1:
        raise UsageError(
            f"No data at {data}. Give a .jsonl, .json, .parquet or .csv file, a folder, a Hub "
            "id (org/name), or a name that 'tpcal datasets' lists."
        )
    return _hub(data, split, n, seed)


def order(n_rows: int, split: str, seed: int) -> np.ndarray:
    """[n_rows] row numbers in the random order in which samples are drawn.

    The role ``eval`` draws from the other end of the same order. So calibration and evaluation
    share no rows of data with a single split, unless the two together need more rows than it has.

    Example:
        >>> from tpcal.calibrate.inputs.sources import order
        >>> bool((order(9, "eval", seed=0) == order(9, "calibration", seed=0)[::-1]).all())
        True
    """
    drawn = np.random.default_rng(seed).permutation(n_rows)
    return drawn[::-1] if split == "eval" else drawn


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
        return _table(path.name, loaded, path.parent)
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
    if len(files) == 1 or own:
        return _file((own or files)[0], split)
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
        found: Mapping[str, Any] = next(reading)
        return found


def _hub(data: str, split: str, n: int | None, seed: int) -> RawTable:
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
        how = {"name": config or None, "revision": revision, "streaming": n is not None}
        loaded = _as_written(datasets.load_dataset(name, **how), name, **how)
        table = _pick(data, loaded, split, None, n, seed)
    return table


def _pick(
    name: str,
    loaded: Any,
    split: str,
    folder: Path | None,
    n: int | None = None,
    seed: int = 0,
) -> RawTable:
    """The table of the wanted split of what `datasets` loaded.

    Raises:
        UsageError: There is no such split, or it is empty.
    """
    if not isinstance(loaded, dict):
        return _table(name, loaded, folder, n, seed)
    wanted = ROLES.get(split, (split,))
    found = [s for s in wanted if s in loaded] or (list(loaded) if len(loaded) == 1 else [])
    if not found or (split not in ROLES and split not in loaded):
        raise UsageError(f"{name} has no split {split!r}. It has: {listed(list(loaded))}.")
    return _table(name, loaded[found[0]], folder, n, seed)


def _table(
    name: str, loaded: Any, folder: Path | None, n: int | None = None, seed: int = 0
) -> RawTable:
    """The table of a split, its images left encoded so that an error names an image's row."""
    import datasets

    # A streamed data set is shuffled within a buffer and cut off after n rows, so that only about
    # as many rows are fetched as are needed.
    features = loaded.features or {}
    labels = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    loaded = undecoded(loaded)
    if isinstance(loaded, datasets.IterableDataset):
        assert n is not None
        drawn = loaded.shuffle(seed=seed, buffer_size=max(MIN_SHUFFLE, n))
        loaded = list(drawn.take(n))
    if not len(loaded):
        raise UsageError(f"{name} must hold samples; got none.")
    columns = tuple(features) or tuple(loaded[0])
    return RawTable(name, loaded, columns, labels, folder)


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


@contextmanager
def explained(name: str) -> Iterator[None]:
    """A context that silences `datasets` and turns its errors into a `UsageError` of one line."""
    import datasets
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils import logging

    bars, verbosity = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    datasets.disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # its errors, which are raised too, log whole cells
    try:
        yield
    except (OSError, ValueError, DatasetGenerationError, NotImplementedError) as error:
        cause = error.__cause__ or error
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise UsageError(
            f"{name} cannot be loaded as a data set: {excerpt(first, 200)}."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
