"""Hook of mkdocs: lets mkdocstrings find the package, whose folder is the root of the checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINKS: list[TemporaryDirectory[str]] = []


def on_startup(**_: Any) -> None:
    """Puts a folder that holds the package under its own name on the path of modules."""
    folder = TemporaryDirectory(prefix="tpcal-docs-")
    (Path(folder.name) / "tpcal").symlink_to(ROOT, target_is_directory=True)
    sys.path.insert(0, folder.name)
    _LINKS.append(folder)


def on_shutdown(**_: Any) -> None:
    """Takes it away again."""
    while _LINKS:
        folder = _LINKS.pop()
        sys.path.remove(folder.name)
        folder.cleanup()
