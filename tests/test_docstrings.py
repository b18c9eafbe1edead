"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import tpcal

ROOT = Path(tpcal.__file__).parent
PACKAGES = ("plans", "calibrate", "planner", "workflow", "integrations", "monitor")
FILES = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: a small profile in ``tpcal-out`` and a plan in ``plan.yaml``."""
    made = tmp_path_factory.mktemp("examples")
    stored = tpcal.make_profile(
        data=tpcal.DataChoice(samples=14),
        out=made / "tpcal-out",
        settings=tpcal.CalibrationSettings(("grid",), keeps=(0.5, 0.0), layers=(0, 4)),
    )
    predicted = tpcal.PlanningSettings(measure=False)
    tpcal.find_plan(stored, 0.5, settings=predicted).save(made / "plan.yaml")
    return made


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_examples_of_a_module_show_what_happens(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    module = import_module(".".join(("tpcal", *path.with_suffix("").parts)))
    for test in doctest.DocTestFinder().find(module):
        said: list[str] = []
        doctest.DocTestRunner().run(test, out=said.append)
        assert not said, "".join(said)


def test_an_example_shows_the_use_of_every_public_name() -> None:
    without = [
        name for name in tpcal.__all__ if ">>> " not in (getattr(tpcal, name).__doc__ or "")
    ]
    assert not without
