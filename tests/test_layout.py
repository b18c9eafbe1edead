"""The floors of the building: what may import what, what is shipped, what loads late."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FLOORS = {
    "plans": 1,
    "calibrate": 2,
    "planner": 3,
    "views": 4,
    "integrations": 4,
    "report": 4,
    "commands": 5,
}
TOP = 5  # cli.py and what it parses with
SHELL = {"cli.py", "terminal.py", "__main__.py", "views", "commands"}


def _modules() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0]
        if part in FLOORS or path.parent == ROOT:
            yield path.relative_to(ROOT)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _floor(parts: tuple[str, ...]) -> int:
    return FLOORS.get(parts[0], TOP)


@pytest.mark.parametrize("path", list(_modules()), ids=str)
def test_dependencies_point_one_way(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == Path():
        return  # the public names come from every floor, lazily
    for name in _imports(path):
        if name == "tpcal.__version__" or not name.startswith("tpcal."):
            continue
        parts = tuple(name.split(".")[1:])
        assert _floor(parts) <= _floor(path.parts), f"{path} imports {name} from a floor above"


@pytest.mark.parametrize("path", list(_modules()), ids=str)
def test_only_the_command_line_prints(path: Path) -> None:
    if SHELL & {path.name, *path.parts}:
        return
    assert not any(name.split(".")[0] == "rich" for name in _imports(path)), path
    calls = (n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.Call))
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"print", "exit", "quit"}, path


def test_every_package_is_listed_for_the_wheel() -> None:
    found = {
        ".".join(("tpcal", *path.parent.parts))
        for path in _modules()
        if path.name == "__init__.py"
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_what_trains_the_built_in_model_is_not_in_the_wheel() -> None:
    assert not any("tools" in name for name in PROJECT["tool"]["setuptools"]["packages"])
    kept = [path for path in _modules() if path.parts[:2] == ("calibrate", "embedded")]
    assert kept
    for path in kept:
        used = {name.split(".")[0] for name in _imports(path)}
        assert not used & {"tools", "torch", "transformers", "tokenizers"}, path


def test_every_module_says_what_it_holds() -> None:
    for path in _modules():
        assert ast.get_docstring(ast.parse((ROOT / path).read_text())), path


def test_nothing_is_called_utils() -> None:
    assert not {"utils.py", "common.py", "helpers.py"} & {path.name for path in _modules()}


@pytest.mark.parametrize(
    "statement",
    [
        "import tpcal",
        "import tpcal.plans.schema",
        "import tpcal; tpcal.load_preset('fastv', 32)",
        "from tpcal.plans.selectors import names; names()",
    ],
)
def test_plans_can_be_read_without_torch(statement: str) -> None:
    heavy = ["torch", "transformers", "optuna", "datasets", "numpy", "rich"]
    code = f"{statement}\nimport sys\nprint(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names_exist_and_unknown_ones_do_not() -> None:
    import tpcal

    for name in tpcal.__all__:
        assert getattr(tpcal, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tpcal.nonsense


def test_the_version_is_one() -> None:
    import tpcal

    assert PROJECT["project"]["version"] == tpcal.__version__
