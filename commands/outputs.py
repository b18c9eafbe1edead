"""Files that commands write: results as JSON and Markdown, and pictures as SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from tpcal import __version__, terminal
from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

MARK = "made by tpcal"
"""Mark near the beginning of every such file. Files without it are not overwritten."""
N_BYTES = 2_000
"""Number of bytes at the beginning of a file that are searched for `MARK`."""


def made_by() -> str:
    """The text of `MARK` with the version of tpcal."""
    return f"{MARK} {__version__}"


def check_place(path: Path) -> None:
    """Raises UsageError if no file can be written here; call it before the work begins.

    Raises:
        UsageError: If the folder does not exist or cannot be written, or the path is something
            other than a file.
    """
    if not path.parent.is_dir():
        raise UsageError(f"The folder of {path} must exist; got none. Make it first.")
    check_folder(path.parent, "Name a file elsewhere")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} must be a file; got something else. Name another one.")


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raises UsageError if the path holds another file than a plan and ``force`` is not set.

    Raises:
        UsageError: Something else is there, or its folder is not.
    """
    from tpcal.plans.plan_file import load_plan

    check_place(path)
    if force or not path.exists():
        return
    try:
        load_plan(path)
    except UsageError:
        way_out = "Name another file with --output, or add --force"
        raise UsageError(f"{path} exists and is not a plan. {way_out}.") from None


def check_outputs(outputs: Sequence[Path], force: bool = False) -> None:
    """Raises UsageError if a file that tpcal did not make would be overwritten without ``force``.

    Call it before the work begins.

    Raises:
        UsageError: If such a file exists, or a folder does not exist.
    """
    for path in outputs:
        check_place(path)
        if force or not path.exists():
            continue
        with path.open("rb") as file:
            if MARK.encode() not in file.read(N_BYTES):
                way_out = "Name another file, or add --force"
                raise UsageError(f"{path} exists and was not made by tpcal. {way_out}.")


def check_folder(folder: Path, way_out: str) -> None:
    """Creates the folder and checks that files can be written to it, before the work begins.

    Raises:
        UsageError: If the folder cannot be written; the message ends with ``way_out``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}. {way_out}.") from None


def write_figures(outputs: Sequence[Path], data: Mapping[str, Any], markdown: str) -> None:
    """Writes the results to every file, as JSON or Markdown according to its suffix.

    Args:
        outputs: Files with the suffix .json or .md, from `groups.figures_option`.
        data: Plain data for JSON; ``made_by`` and ``command`` are put first.
        markdown: The same results as Markdown.
    """
    from tpcal.plans.yaml_files import write_atomic

    whole = {"made_by": made_by(), "command": terminal.command(), **data}
    texts = {
        ".json": json.dumps(whole, indent=2) + "\n",
        ".md": f"<!-- {made_by()}: {terminal.command()} -->\n\n{markdown.rstrip()}\n",
    }
    for path in outputs:
        write_atomic(path, texts[path.suffix.lower()])


def write_picture(path: Path, view: RenderableType, title: str) -> None:
    """Writes the terminal output of a view as SVG, with `MARK` in it."""
    from tpcal.plans.yaml_files import write_atomic

    opening, end, rest = terminal.picture(view, title).partition(">")
    write_atomic(path, f"{opening}{end}<!-- {made_by()} -->{rest}")
