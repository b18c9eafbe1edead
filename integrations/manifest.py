"""The entry point in pyproject.toml through which lmms-eval finds tpcal."""

from __future__ import annotations

from typing import Any

MODEL = "tpcal"
CLASS = "tpcal.integrations.lmms_eval.Tpcal"


def lmms_eval() -> Any:
    """The manifest of the model ``tpcal``, in lmms-eval's class; lmms-eval must be installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=CLASS)
