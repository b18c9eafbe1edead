"""The place of a model's files, by the model's name: built in, a folder, or a Hub repository."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tpcal.calibrate.smol.assemble import assembled_folder
from tpcal.plans import hub
from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import EMBEDDED, SMOL
from tpcal.plans.model_aliases import ALIASES


@dataclass(frozen=True)
class ModelFiles:
    """The place of a model's files: a folder, or a repository on the Hub."""

    name: str
    """The name as the user gave it, without the revision."""
    source: str
    """The folder, or the id of the repository."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    is_folder: bool = False
    """Whether the files are in a local folder."""

    def arguments(self, trust_remote_code: bool) -> dict[str, Any]:
        """Keywords for every call of ``from_pretrained``."""
        keywords: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if self.revision:
            keywords["revision"] = self.revision
        if self.is_folder or not hub.reachable():
            keywords["local_files_only"] = True
        return keywords


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of a model, by its name; those on the Hub are not fetched yet.

    Args:
        name: ``embedded``, ``smol``, an alias of `ALIASES`, a Hub id (``org/name`` or
            ``org/name@revision``) or a local folder.
        revision: Branch, tag or commit on the Hub; takes precedence over ``@revision``.

    Raises:
        UsageError: There is no such folder, or the name cannot be that of a model.

    Example:
        >>> from tpcal.calibrate.inputs.model_files import find_model
        >>> find_model("llava-1.5-7b@main").source
        'llava-hf/llava-1.5-7b-hf'
    """
    if name == EMBEDDED:
        return _embedded()
    if name == SMOL:
        with quiet():
            return ModelFiles(SMOL, str(assembled_folder()), is_folder=True)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"{name} must be a model folder; it holds no config.json.")
        return ModelFiles(name, str(folder), is_folder=True)
    if folder.is_absolute() or name.startswith((".", "~")) or folder.exists():
        raise UsageError(f"No model folder at {name}.")
    bare, own_revision = hub.split_revision(name)
    source = ALIASES.get(bare.lower(), bare)
    if source.count("/") != 1:
        raise UsageError(_unknown(name))
    return ModelFiles(bare, source, revision or own_revision)


def _embedded() -> ModelFiles:
    folder = Path(str(resources.files("tpcal.calibrate.embedded"))) / "weights"
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"The embedded model's weights are missing at {folder}. Install tpcal again, or train "
            "them from a checkout: python -m tools.embedded.train all --out FOLDER."
        )
    return ModelFiles(EMBEDDED, str(folder), is_folder=True)


def _unknown(name: str) -> str:
    known = [EMBEDDED, *ALIASES]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
    return (
        f"No model or folder is called {name!r}. {hint} Otherwise give a Hub id (org/name) or a "
        "local folder."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars of transformers, because the library itself draws nothing."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
