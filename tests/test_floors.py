"""The oldest admitted releases are read from pyproject.toml."""

from __future__ import annotations

from floors import constraints, floors


def test_a_floor_is_the_lowest_admitted_version() -> None:
    wanted = ["Click>=8.2", "plotly<8,>=6", "build", "x_y==1.5; python_version > '3'"]
    assert floors(wanted) == {"click": "8.2", "plotly": "6", "x-y": "1.5"}


def test_tools_are_pinned_and_what_others_need_is_not() -> None:
    project = {"dependencies": ["numpy>=2"], "optional-dependencies": {"dev": ["pytest", "numpy"]}}
    pinned = ["numpy==2.4.6", "pytest==9.2.0", "pandas==3.1.1"]
    assert [*constraints(project, pinned)] == ["numpy==2", "pytest==9.2.0"]
