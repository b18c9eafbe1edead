"""tpcal: calibrate, plan and run visual-token pruning for vision-language models.

Names are loaded when first used, so that ``import tpcal`` needs neither torch nor transformers nor
optuna.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.data_choice import DataChoice
    from tpcal.calibrate.inputs.model_choice import ModelChoice
    from tpcal.monitor.monitor import Monitor
    from tpcal.monitor.monitor_settings import MonitorSettings
    from tpcal.planner.certificates.binomial import Promise
    from tpcal.planner.prediction.budget import Budget
    from tpcal.plans.errors import TpcalError
    from tpcal.plans.executor.handle import Handle, apply, check
    from tpcal.plans.executor.prompt_embeddings import pruned_prompt
    from tpcal.plans.plan_file import load_preset, presets, save_plan
    from tpcal.plans.plan_names import load_plan
    from tpcal.plans.plan_records import Cut, Plan
    from tpcal.workflow.calibration import make_profile
    from tpcal.workflow.certification import certify
    from tpcal.workflow.evaluation import evaluate
    from tpcal.workflow.lowering import lower
    from tpcal.workflow.profiles import load_profile
    from tpcal.workflow.search import find_front, find_plan
    from tpcal.workflow.step_settings import (
        CalibrationSettings,
        CertificationSettings,
        EvaluationSettings,
        PlanLimits,
        PlanningSettings,
    )
    from tpcal.workflow.verification import verify

__version__ = "0.2.0.dev0"

_HOMES = {
    "TpcalError": "tpcal.plans.errors",
    "Handle": "tpcal.plans.executor.handle",
    "apply": "tpcal.plans.executor.handle",
    "check": "tpcal.plans.executor.handle",
    "Cut": "tpcal.plans.plan_records",
    "Plan": "tpcal.plans.plan_records",
    "load_plan": "tpcal.plans.plan_names",
    "load_preset": "tpcal.plans.plan_file",
    "presets": "tpcal.plans.plan_file",
    "pruned_prompt": "tpcal.plans.executor.prompt_embeddings",
    "save_plan": "tpcal.plans.plan_file",
    "Budget": "tpcal.planner.prediction.budget",
    "CalibrationSettings": "tpcal.workflow.step_settings",
    "CertificationSettings": "tpcal.workflow.step_settings",
    "DataChoice": "tpcal.calibrate.inputs.data_choice",
    "EvaluationSettings": "tpcal.workflow.step_settings",
    "ModelChoice": "tpcal.calibrate.inputs.model_choice",
    "Monitor": "tpcal.monitor.monitor",
    "MonitorSettings": "tpcal.monitor.monitor_settings",
    "PlanLimits": "tpcal.workflow.step_settings",
    "PlanningSettings": "tpcal.workflow.step_settings",
    "Promise": "tpcal.planner.certificates.binomial",
    "certify": "tpcal.workflow.certification",
    "evaluate": "tpcal.workflow.evaluation",
    "find_front": "tpcal.workflow.search",
    "find_plan": "tpcal.workflow.search",
    "load_profile": "tpcal.workflow.profiles",
    "lower": "tpcal.workflow.lowering",
    "make_profile": "tpcal.workflow.calibration",
    "verify": "tpcal.workflow.verification",
}

__all__ = [
    "Budget",
    "CalibrationSettings",
    "CertificationSettings",
    "Cut",
    "DataChoice",
    "EvaluationSettings",
    "Handle",
    "ModelChoice",
    "Monitor",
    "MonitorSettings",
    "Plan",
    "PlanLimits",
    "PlanningSettings",
    "Promise",
    "TpcalError",
    "apply",
    "certify",
    "check",
    "evaluate",
    "find_front",
    "find_plan",
    "load_plan",
    "load_preset",
    "load_profile",
    "lower",
    "make_profile",
    "presets",
    "pruned_prompt",
    "save_plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tpcal' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
