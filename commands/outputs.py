"""What commands write beside what they print: figures as JSON and Markdown, pages as HTML."""

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
"""Stands near the beginning of every such file, so that no other file is overwritten."""
N_BYTES = 2_000
"""Of a file's beginning that are searched for `MARK`."""


def made_by() -> str:
    """`MARK` with the version."""
    return f"{MARK} {__version__}"


def check_place(path: Path) -> None:
    """Nothing, where a file can be written; to be asked before the work begins.

    Raises:
        UsageError: Its folder is not there, or something is there that is no file.
    """
    if not path.parent.is_dir():
        raise UsageError(f"The folder of {path} must exist; got none. Make it first.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} must be a file; got something else. Name another one.")


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Nothing, where the path is free or holds a plan, or ``force`` is set.

    Raises:
        UsageError: Something else is there, or its folder is not.
    """
    from tpcal.plans.schema import load_plan

    check_place(path)
    if force or not path.exists():
        return
    try:
        load_plan(path)
    except UsageError:
        way_out = "Name another file with --output, or add --force"
        raise UsageError(f"{path} exists and is not a plan. {way_out}.") from None


def check_outputs(outputs: Sequence[Path], force: bool = False) -> None:
    """Nothing, where the files are free or of tpcal's making, or ``force`` is set.

    To be asked before the work begins.

    Raises:
        UsageError: A file of someone else's is there, or its folder is not.
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
    """Makes the folder, and a file in it for a moment, before the work begins.

    Raises:
        UsageError: The folder cannot be written; ends with ``way_out``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}. {way_out}.") from None


def write_figures(outputs: Sequence[Path], data: Mapping[str, Any], markdown: str) -> None:
    """Writes the same figures into every file, by its ending: .json or .md.

    Args:
        outputs: As `options.figures_option` hands them over.
        data: Plain; ``made_by`` and ``command`` are put first.
        markdown: The same as a page.
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
    """Writes what a terminal would show as SVG, with `MARK` in it."""
    from tpcal.plans.yaml_files import write_atomic

    opening, end, rest = terminal.picture(view, title).partition(">")
    write_atomic(path, f"{opening}{end}<!-- {made_by()} -->{rest}")
