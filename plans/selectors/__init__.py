"""The registry of selectors: every module in this folder except ``base`` and ``_*`` is one.

Listing the names imports no module; a selector's module (and torch) is imported on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from tpcal.plans.errors import UsageError

if TYPE_CHECKING:
    from tpcal.plans.selectors.base import Selector

__all__ = [
    "can_cut",
    "create",
    "kind",
    "min_layer",
    "names",
    "needs",
    "parameters",
    "reads_grid",
    "reads_views",
    "searched",
]


@cache
def names() -> tuple[str, ...]:
    """Names of all selectors, sorted; imports neither torch nor a selector."""
    return tuple(
        sorted(
            module.name
            for module in iter_modules(__path__)
            if module.name != "base" and not module.name.startswith("_")
        )
    )


def create(name: str, params: Mapping[str, Any] | None = None) -> Selector:
    """The selector called ``name`` with the given parameters.

    Args:
        name: One of ``names()``.
        params: Values of parameters; the other parameters keep their defaults.

    Raises:
        UsageError: The name or a parameter is unknown, or a value breaks its parameter's rule.

    Examples:
        >>> from tpcal.plans import selectors
        >>> selectors.create("diversity", {"rule": "max_sum"})
        Diversity(rule='max_sum', pivot='farthest')
    """
    made = kind(name)
    known = [f.name for f in fields(made)]
    unknown = [key for key in params or {} if key not in known]
    if unknown:
        raise UsageError("\n".join(_unknown(name, key, known) for key in unknown))
    return made(**(params or {}))


def _unknown(name: str, key: str, known: list[str]) -> str:
    removed = kind(name).removed
    if key in removed:
        return f"{name} no longer has the parameter {key!r}. {removed[key]}"
    listed = f"Known: {', '.join(known)}" if known else "It has none"
    return f"{name} has no parameter {key!r}. {listed}."


def parameters(name: str) -> dict[str, Any]:
    """Names and defaults of a selector's parameters, in the order of its class."""
    return {f.name: f.default for f in fields(kind(name))}


def searched(name: str) -> dict[str, tuple[Any, ...]]:
    """Parameters worth searching, with their lowest and highest number, or with all choices."""
    return dict(kind(name).searched)


def needs(name: str, params: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Information that the selector needs in ``Tokens``, in the words of ``Selector.required``."""
    return create(name, params).needs


def reads_grid(name: str, params: Mapping[str, Any] | None = None) -> bool:
    """Whether the selector reads the places of tokens in their image."""
    return create(name, params).reads_grid


def reads_views(name: str, params: Mapping[str, Any] | None = None) -> bool:
    """Whether the selector treats the tiles of a picture, or the steps of a video, apart."""
    return create(name, params).reads_views


def can_cut(name: str, params: Mapping[str, Any] | None, layer: int) -> bool:
    """Whether the selector can cut at ``layer``; torch is imported for layer 0 only.

    Only selectors that need attention cannot cut at layer 0, before any layer has computed it.
    """
    return layer > 0 or min_layer(name, params) == 0


def min_layer(name: str, params: Mapping[str, Any] | None = None) -> int:
    """Lowest layer the selector can cut at: 1 if it needs attention, otherwise 0."""
    return create(name, params).min_layer


@cache
def kind(name: str) -> type[Selector]:
    """The class of the selector called ``name``; its fields are the selector's parameters.

    Raises:
        UsageError: No selector has this name.
    """
    if name not in names():
        raise UsageError(f"No selector is called {name!r}. Known: {', '.join(names())}.")
    from tpcal.plans.selectors.base import Selector

    module = import_module(f"{__name__}.{name}")
    found = [
        made
        for made in vars(module).values()
        if isinstance(made, type)
        and issubclass(made, Selector)
        and made.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define one selector"
    return found[0]
