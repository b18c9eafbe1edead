"""How lmms-eval finds tpcal: what the entry point in pyproject.toml names."""

from __future__ import annotations

from typing import Any

MODEL = "tpcal"
CLASS = "tpcal.integrations.lmms_eval.Tpcal"


def lmms_eval() -> Any:
    """The manifest of the model ``tpcal``, of lmms-eval's class; lmms-eval must be installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=CLASS)
