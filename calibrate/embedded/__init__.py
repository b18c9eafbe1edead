"""The built-in vision-language model and the scenes it was trained on; see MODEL_CARD.md.

Importing this package loads neither torch nor PIL; the first use of ``samples`` loads PIL.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpcal.calibrate.embedded.questions import GROUPS, Question
    from tpcal.calibrate.embedded.scenes import SPLITS, EmbeddedSample, Scene, samples, scene

FOLDER: Path = Path(__file__).parent / "weights"
"""The shipped model: a folder for ``AutoModelForImageTextToText`` and ``AutoProcessor``."""

_HOMES = {
    "GROUPS": "questions",
    "Question": "questions",
    "SPLITS": "scenes",
    "EmbeddedSample": "scenes",
    "Scene": "scenes",
    "samples": "scenes",
    "scene": "scenes",
}

__all__ = [
    "FOLDER",
    "GROUPS",
    "SPLITS",
    "EmbeddedSample",
    "Question",
    "Scene",
    "samples",
    "scene",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
