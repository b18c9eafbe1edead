"""Tiny random models, one file per architecture: the directory listing is the list of cases."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from releases import skip_elsewhere

from tpcal.plans.laws import Case


def names() -> list[str]:
    """All architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def case(name: str, attn: str) -> Case:
    """The tiny model of an architecture with its prompts; made once."""
    try:
        built = import_module(f"{__name__}.{name}")
    except ImportError as error:  # an architecture, or its processor, that came later
        skip_elsewhere(str(error))
        raise
    return built.build(attn)
