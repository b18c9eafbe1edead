"""Synthetic profiles and a model that needs no model, shared by the planner's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.generated_world import FakeMeasurer, World


@pytest.fixture
def make_world() -> Callable[..., World]:
    def make(n_layers=8, n_tokens=36, n_groups=3, n_samples=48, seed=0) -> World:
        return World(n_layers, n_tokens, n_groups, n_samples, seed)

    return make


@pytest.fixture
def make_measurer() -> type[FakeMeasurer]:
    return FakeMeasurer
