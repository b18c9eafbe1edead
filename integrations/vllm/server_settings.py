"""What a user asks of the plugin: the plan, the kill switch, and untried versions.

Users write the settings into vLLM's ``additional_config`` under the key ``tpcal``, or name the
plan by an environment variable. The process that starts the server reads the plan once and passes
its text on, so that all processes run the same plan even if its file changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tpcal.plans.errors import UsageError, excerpt
from tpcal.plans.kill_switch import off_by_variable
from tpcal.plans.plan_file import dump_plan, parse_plan
from tpcal.plans.plan_names import is_preset, load_plan
from tpcal.plans.plan_records import Plan

KEY = "tpcal"
"""Key of the settings in ``additional_config``, and of a request's opt-out in ``extra_args``."""
PLAN = "TPCAL_PLAN"
"""Environment variable with the name of a plan, used if ``additional_config`` names none."""
KNOWN = ("plan", "off", "untried")


@dataclass(frozen=True)
class Settings:
    """The settings of one server."""

    plan: Plan
    """The plan to run."""
    untried: bool = False
    """Run on versions, on GPUs of AMD and with architectures that no test covers."""
    videos: str = ""
    """What `tpcal.plans.engines.Engine.videos` says of the plan and the model."""
    name: str = field(default="", compare=False)
    """What the user called the plan, as `tpcal.load_plan` takes it."""

    def scaled(self, n_layers: int, n_tokens: int) -> Settings:
        """The settings for a model: a preset is scaled to its depth and its visual tokens."""
        if not is_preset(self.name):
            return self
        return replace(self, plan=load_plan(self.name, n_layers, n_tokens))

    def passed_on(self) -> dict[str, Any]:
        """The settings as other processes receive them: `received` reads them."""
        return {"text": dump_plan(self.plan), "untried": self.untried, "videos": self.videos}


def read(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings | None:
    """The settings that a user gave; None if no plan is named or the kill switch is set.

    Args:
        given: vLLM's ``additional_config``.
        environment: The environment variables.

    Raises:
        UsageError: A setting is unknown or has the wrong type, or the plan cannot be read.

    Example:
        >>> read({}, {})
        >>> read({"tpcal": {"plan": "missing.yaml", "off": True}}, {})
    """
    own = given.get(KEY, {})
    if not isinstance(own, Mapping):
        raise UsageError(
            f'additional_config.{KEY} must be a mapping such as {{"plan": "plan.yaml"}}; '
            f"got {excerpt(own)}."
        )
    unknown = sorted(str(key) for key in set(own) - set(KNOWN))
    if unknown:
        raise UsageError(
            f"additional_config.{KEY} has no setting {excerpt(unknown[0])}. "
            f"Known: {', '.join(KNOWN)}."
        )
    name, untried = own.get("plan") or environment.get(PLAN), _switch(own, "untried")
    if not name or _switch(own, "off") or off_by_variable(environment):
        return None
    return Settings(load_plan(name), untried, name=str(name))


def received(given: Mapping[str, Any]) -> Settings:
    """The settings that the process which started the server passed on.

    Args:
        given: vLLM's ``additional_config`` in another process of the server.
    """
    own = given[KEY]
    return Settings(
        parse_plan(own["text"], "the plan of the server"), own["untried"], own["videos"]
    )


def _switch(own: Mapping[str, Any], name: str) -> bool:
    value = own.get(name, False)
    if type(value) is not bool:
        raise UsageError(
            f"additional_config.{KEY}.{name} must be true or false; got {excerpt(value)}."
        )
    return value
