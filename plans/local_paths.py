"""Local paths in files: a profile or plan stores them relative to its own folder.

A stored path begins with ``./``, ``../`` or ``~/``, which distinguishes it from a name on the Hub.
It is valid from any working folder, survives a move of the whole tree, and does not contain the
path of the home folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Plan

EMBEDDED = "embedded"
"""Name of the first built-in model and of the built-in questions; it is never a path."""
SMOL = "smol"
"""Name of the second built-in model; it is never a path."""
BUILT_IN = (EMBEDDED, SMOL)
"""Names of the models that the built-in questions are for."""


def file_name(name: str, *more: str | None) -> str:
    """A model's name as a part of names of files; empty if it has no letter or digit.

    Args:
        name: The model's name.
        more: What else the file belongs to, such as a device; None is left out.

    Example:
        >>> from tpcal.plans.local_paths import file_name
        >>> file_name("llava-hf/LLaVA 1.5")
        'llava-hf-llava-1.5'
    """
    whole = "-".join(part for part in (name, *more) if part)
    return re.sub(r"[^a-z0-9.]+", "-", whole.lower()).strip("-.")


def kept(place: str, folder: Path) -> str:
    """The name by which a file in ``folder`` stores a model or data set.

    Args:
        place: Name given by the user, relative to the working folder. If nothing exists there it
            is not a path, and is returned unchanged.
        folder: Folder of the file.
    """
    path = Path(place).expanduser()
    return place if place in BUILT_IN or not path.exists() else _relative(path, folder)


def from_here(place: str, folder: Path) -> str:
    """The inverse of `kept`: a stored name, relative to the working folder."""
    if not _is_relative(place):
        return place
    path = os.path.normpath(folder.resolve() / place)
    try:
        return _marked(os.path.relpath(path))
    except ValueError:  # another drive
        return path


def locate(place: str, folder: Path, file: str, option: str) -> str:
    """The stored name relative to the working folder, after a check that a path exists.

    Args:
        place: Name as the file stores it.
        folder: Folder of the file.
        file: The file's name for the error message.
        option: Option by which the user can name another place.

    Raises:
        UsageError: The name is a path, and nothing exists there.
    """
    here = from_here(place, folder)
    if _is_path(here) and not Path(here).expanduser().exists():
        raise UsageError(
            f"{file} names {here}, and nothing is there. Name where it is now with {option}."
        )
    return here


def moved(plan: Plan, start: Path, end: Path) -> Plan:
    """The plan of a file in ``start``, its model's and data's paths rewritten for ``end``."""

    def again(place: str) -> str:
        return _relative(Path(from_here(place, start)), end) if _is_relative(place) else place

    model, facts = plan.model, dict(plan.provenance)
    if model is not None and model.name is not None:
        model = replace(model, name=again(model.name))
    if isinstance(data := facts.get("data"), Mapping) and isinstance(data.get("data"), str):
        facts["data"] = {**data, "data": again(data["data"])}
    return replace(plan, model=model, provenance=facts)


def without_paths(plan: Plan) -> Plan:
    """The plan without the local paths of its model and data, which another machine lacks.

    The model's structure and the fingerprint of the data stay.
    """
    model, facts = plan.model, dict(plan.provenance)
    if model is not None and model.name is not None and _is_path(model.name):
        model = replace(model, name=None, revision=None)
    data = facts.get("data")
    if isinstance(data, Mapping) and _is_path(str(data.get("data", ""))):
        facts["data"] = {key: value for key, value in data.items() if key != "data"}
    return replace(plan, model=model, provenance=facts)


def last_part(place: str) -> str:
    """The last part of a path, for display; a name that is no path is returned unchanged."""
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
