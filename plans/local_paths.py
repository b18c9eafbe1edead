"""Local paths in files: a profile or plan keeps them relative to its own folder.

A kept path begins with ``./``, ``../`` or ``~/``, so that it is told from a name on the Hub. It is
found from wherever the file is used, survives a move of the whole tree, and spells out no home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from tpcal.plans.schema import Plan

EMBEDDED = "embedded"
"""The built-in model and the built-in questions; never a path."""


def kept(place: str, folder: Path) -> str:
    """A model or data set as a file in ``folder`` names it.

    Args:
        place: As the user named it, seen from the working folder. What is not there is no path,
            and stays.
        folder: Of the file.
    """
    path = Path(place).expanduser()
    return place if place == EMBEDDED or not path.exists() else _relative(path, folder)


def from_here(place: str, folder: Path) -> str:
    """The inverse of `kept`: what a file in ``folder`` names, seen from the working folder."""
    if not _is_relative(place):
        return place
    path = os.path.normpath(folder.resolve() / place)
    try:
        return _marked(os.path.relpath(path))
    except ValueError:  # another drive
        return path


def locate(place: str, folder: Path, file: str, option: str) -> str:
    """As `from_here`, of what is there.

    Args:
        place: As the file keeps it.
        folder: Of the file.
        file: Named in the error.
        option: The option that names the place instead.

    Raises:
        UsageError: It is a path, and nothing is there.
    """
    here = from_here(place, folder)
    if _is_path(here) and not Path(here).expanduser().exists():
        raise UsageError(
            f"{file} names {here}, and nothing is there. Name where it is now with {option}."
        )
    return here


def moved(plan: Plan, start: Path, end: Path) -> Plan:
    """The plan of a file in ``start`` as a file in ``end`` keeps it: its model and its data."""

    def again(place: str) -> str:
        return _relative(Path(from_here(place, start)), end) if _is_relative(place) else place

    model, facts = plan.model, dict(plan.provenance)
    if model is not None and model.name is not None:
        model = replace(model, name=again(model.name))
    if isinstance(data := facts.get("data"), Mapping) and isinstance(data.get("data"), str):
        facts["data"] = {**data, "data": again(data["data"])}
    return replace(plan, model=model, provenance=facts)


def last_part(place: str) -> str:
    """The last part of a path, for people; any other name whole."""
    return Path(place).name if _is_path(place) else place


def _is_relative(place: str) -> bool:
    return place.startswith(("./", "../")) or place in (".", "..")


def _is_path(place: str) -> bool:
    return _is_relative(place) or place.startswith("~") or os.path.isabs(place)


def _relative(path: Path, folder: Path) -> str:
    real, start = path.parent.resolve() / path.name, folder.resolve()  # a link keeps its suffix
    home = Path.home()
    if home in real.parents and home not in (start, *start.parents):
        return f"~/{real.relative_to(home).as_posix()}"
    try:
        return _marked(os.path.relpath(real, start))
    except ValueError:  # another drive
        return str(real)


def _marked(path: str) -> str:
    path = Path(path).as_posix()
    return path if path == ".." or path.startswith("../") else f"./{path}".removesuffix("/.")
