"""The selectors: every file beside this one is one, but for ``base`` and ``_*``.

Listing names imports nothing; a selector's own file (and torch) is imported when it is first used.
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

__all__ = ["can_cut", "create", "kind", "min_layer", "names", "needs", "parameters", "searched"]


@cache
def names() -> tuple[str, ...]:
    """Names of all selectors, sorted; neither torch nor a selector is imported."""
    return tuple(
        sorted(
            module.name
            for module in iter_modules(__path__)
            if module.name != "base" and not module.name.startswith("_")
        )
    )


def create(name: str, params: Mapping[str, Any] | None = None) -> Selector:
    """The selector of that name with these parameters.

    Args:
        name: One of ``names()``.
        params: Values for its parameters; the others keep their defaults.

    Raises:
        UsageError: The name or a parameter is unknown, or a value breaks its parameter's rule.
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
    """Parameter names of a selector and their defaults, in the order of its file."""
    return {f.name: f.default for f in fields(kind(name))}


def searched(name: str) -> dict[str, tuple[Any, ...]]:
    """Parameters worth searching: lowest and highest number, or all words."""
    return dict(kind(name).searched)


def needs(name: str, params: Mapping[str, Any] | None = None) -> frozenset[str]:
    """What the selector must find in ``Tokens``, as ``Selector.required`` lists it."""
    return create(name, params).needs


def can_cut(name: str, params: Mapping[str, Any] | None, layer: int) -> bool:
    """Whether the selector works at ``layer``; torch is imported for layer 0 only.

    What a selector may need beside the states is the attention of one layer.
    """
    return layer > 0 or min_layer(name, params) == 0


def min_layer(name: str, params: Mapping[str, Any] | None = None) -> int:
    """Lowest layer the selector can cut at: 1 where it needs attention, otherwise 0."""
    return create(name, params).min_layer


@cache
def kind(name: str) -> type[Selector]:
    """The class of that name; its fields are the selector's parameters.

    Raises:
        UsageError: The name is unknown.
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
