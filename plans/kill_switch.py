"""The environment variable that leaves every request unpruned, in transformers and in vLLM."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tpcal.plans.errors import UsageError

OFF = "TPCAL_OFF"
"""Environment variable that, set to 1 when a plan is applied, leaves every request unpruned."""


def off_by_variable(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment variable leaves every request unpruned.

    Example:
        >>> off_by_variable({"TPCAL_OFF": "1"}), off_by_variable({"TPCAL_OFF": "0"})
        (True, False)
    """
    return environment.get(OFF, "0") not in ("", "0")


def refuse_off() -> None:
    """Raises UsageError if the environment variable is set: a plan could not be measured then."""
    if off_by_variable():
        raise UsageError(
            f"{OFF} must not be set while plans are measured, because it leaves every request "
            f"unpruned; got {os.environ[OFF]!r:.20}. Unset it."
        )
