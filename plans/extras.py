"""The parts of tpcal that are installed on request, and the error of a missing one.

`pip install tpcal` installs what reading, checking, showing and applying a plan needs. Packages
of an extra of pyproject.toml are installed on request, so every step that imports one of them
calls `require` first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from tpcal.plans.errors import UsageError, listed

P = ParamSpec("P")
R = TypeVar("R")
_PLAN = ("accelerate", "datasets", "optuna", "scipy")
EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "plan": _PLAN,
        "report": (*_PLAN, "plotly"),
        "monitor": ("prometheus_client",),
        "serve": ("accelerate", "fastapi", "openai", "pydantic", "starlette", "uvicorn"),
    }
)
"""The modules that each extra installs; tests/test_layout.py compares them with pyproject.toml."""


class MissingExtra(UsageError):
    """A step needs packages of an extra that is not installed."""


def missing(extra: str) -> tuple[str, ...]:
    """The modules of an extra that are not installed."""
    return tuple(name for name in EXTRAS[extra] if not is_installed(name))


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'tpcal[{extra}]'"


def require(extra: str, *modules: str) -> None:
    """Does nothing if an extra is installed.

    Args:
        extra: One of `EXTRAS`.
        modules: The modules of the extra that the step imports; none named means all.

    Raises:
        MissingExtra: If one of them is missing; the message holds `install_line`.

    Example:
        >>> require("plan", "datasets")
    """
    names = [name for name in missing(extra) if not modules or name in modules]
    if names:
        raise MissingExtra(
            f"This step needs {listed(names)}, which tpcal alone does not install. Way out: "
            f"{install_line(extra)}."
        )


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not imported."""
    spec = find_spec(module)
    # A folder of this name that lies beside a user's program is found, too, but has no origin.
    return spec is not None and spec.origin is not None


def needs(extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function call `require` before it does anything else."""

    def checked(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            require(extra)
            return function(*args, **kwargs)

        return run

    return checked
