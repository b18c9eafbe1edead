"""tpcal: calibrate, plan and run visual-token pruning for vision-language models.

Names are loaded when first used, so that ``import tpcal`` needs neither torch nor transformers nor
optuna.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpcal.plans.errors import TpcalError
    from tpcal.plans.executor.handle import Handle, apply, check
    from tpcal.plans.plan_file import load_plan, load_preset, presets, save_plan
    from tpcal.plans.schema import Cut, Plan

__version__ = "0.1.0"

_HOMES = {
    "TpcalError": "tpcal.plans.errors",
    "Handle": "tpcal.plans.executor.handle",
    "apply": "tpcal.plans.executor.handle",
    "check": "tpcal.plans.executor.handle",
    "Cut": "tpcal.plans.schema",
    "Plan": "tpcal.plans.schema",
    "load_plan": "tpcal.plans.plan_file",
    "load_preset": "tpcal.plans.plan_file",
    "presets": "tpcal.plans.plan_file",
    "save_plan": "tpcal.plans.plan_file",
}

__all__ = [
    "Cut",
    "Handle",
    "Plan",
    "TpcalError",
    "apply",
    "check",
    "load_plan",
    "load_preset",
    "presets",
    "save_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tpcal' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
