"""The floors of the building: what may import what, what is shipped, what loads late."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tpcal
from tpcal.plans.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FLOORS = {
    "plans": 1,
    "calibrate": 2,
    "monitor": 3,
    "planner": 3,
    "workflow": 4,
    "views": 5,
    "integrations": 5,
    "report": 5,
    "options": 6,
    "commands": 6,
}
TOP = 6  # cli.py and what it parses with
SHELL = {"cli.py", "terminal.py", "__main__.py", "views", "commands"}
SHARED_NAMES = {
    "__init__.py",
    "base.py",  # of selectors and of families: what every one of them is
    *(
        "calibrate.py",
        "certify.py",
        "front.py",
        "report.py",
        "run.py",
    ),  # commands, and what they do
    *("inputs.py", "lists.py"),  # of commands, and of the report or the views
}
"""Files that may be called as others are."""


def _modules() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0]
        if part in FLOORS or path.parent == ROOT:
            yield path.relative_to(ROOT)


HOMES = {
    ".".join(("tpcal", *path.with_suffix("").parts)).removesuffix(".__init__"): path
    for path in _modules()
}
"""Dotted name of each module -> its file."""


@cache
def _tree(path: Path) -> ast.Module:
    """The code of a module, only to be read."""
    return ast.parse((ROOT / path).read_text())


def _imports(path: Path) -> Iterator[str]:
    yield from _imported(path, _tree(path))


def _imported(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _floor(parts: tuple[str, ...]) -> int:
    return FLOORS.get(parts[0], TOP)


def _reached(path: Path, functions: bool = True) -> set[str]:
    """All that a module imports, directly or through other modules of tpcal, perhaps in functions."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for name in _loaded(waiting.pop(), functions) - found:
            found.add(name)
            waiting += [HOMES[name]] if name in HOMES else []
    return found


@cache
def _loaded(path: Path, functions: bool = True) -> frozenset[str]:
    """What a module imports when it runs: all but what stands below `if TYPE_CHECKING`.

    Without its functions: when it is imported.
    """
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        if isinstance(node, ast.FunctionDef) and not functions:
            node.body = [ast.Pass()]
    return frozenset(_imported(path, tree))


def test_dependencies_point_one_way() -> None:
    offenders = [
        f"{path} imports {name} from a floor above"
        for path in _modules()
        if path != Path("__init__.py")  # the public names come from every floor, lazily
        for name in _imports(path)
        if name.startswith("tpcal.") and name != "tpcal.__version__"
        if _floor(tuple(name.split(".")[1:])) > _floor(path.parts)
    ]
    assert offenders == []


def _named(path: Path) -> set[str]:
    """The modules that a module names outside of functions, also below `if TYPE_CHECKING`."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    found = {name for name in _imported(path, tree) if name in HOMES} - {"tpcal"}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: _named(path) for name, path in HOMES.items() if name != "tpcal"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_prints() -> None:
    offenders = [
        f"{path} calls {call.func.id}"
        for path in _modules()
        if not SHELL & {path.name, *path.parts}
        for call in ast.walk(_tree(path))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in {"print", "exit", "quit"}
    ]
    offenders += [
        f"{path} imports {name}"
        for path in _modules()
        if not SHELL & {path.name, *path.parts}
        for name in _imports(path)
        if name.split(".")[0] == "rich"
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("allowed", "forbidden"),
    [
        (SHELL | {"options", "integrations"}, {"rich"}),
        (SHELL - {"views"} | {"options"}, {"click", "tpcal.options"}),
    ],
    ids=["rich", "click"],
)
def test_no_library_of_the_command_line_is_reached_from_below(
    allowed: set[str], forbidden: set[str]
) -> None:
    offenders = [
        f"{path} reaches {name}"
        for path in _modules()
        if not allowed & {path.name, *path.parts} and path != Path("__init__.py")
        for name in sorted(_reached(path))
        if name in forbidden or name.split(".")[0] in forbidden
    ]
    assert offenders == []


def test_production_loads_nothing_that_measures_or_decides() -> None:
    above = tuple(f"tpcal.{part}" for part, floor in FLOORS.items() if floor > FLOORS["plans"])
    code = "import sys, tpcal; tpcal.apply; tpcal.load_plan\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "tpcal.plans.executor.handle" in loaded
    assert [name for name in loaded if name.startswith((*above, "tpcal.options", "optuna"))] == []


def _extra_modules() -> dict[str, set[str]]:
    """The modules that each extra of pyproject.toml installs, with those of the extras it names."""
    modules = {
        name: kind
        for kind, names in packages_distributions().items()
        for name in names
        if not kind.startswith("_")  # plotly also has _plotly_utils
    }
    listed: dict[str, set[str]] = {}
    for extra, wanted in PROJECT["project"]["optional-dependencies"].items():
        names = {re.split(r"[><=\[ ]", requirement)[0] for requirement in wanted}
        listed[extra] = {modules.get(name, name.replace("-", "_")) for name in names - {"tpcal"}}
    listed["report"] |= listed["plan"]  # pyproject.toml: report = ["tpcal[plan]", …]
    return listed


def test_extras_are_those_of_the_package() -> None:
    found = _extra_modules()
    assert {extra: set(modules) for extra, modules in EXTRAS.items()} == {
        extra: found[extra] for extra in EXTRAS
    }
    assert PROJECT["project"]["optional-dependencies"]["all"] == ["tpcal[plan,report]"]


LOADED_BY_OTHERS = {
    Path("integrations/lmms_eval.py"),  # lmms-eval, which loads it, has accelerate
    Path("integrations/vllm/counters.py"),  # vLLM, which loads it, has prometheus_client
}
"""Modules that only another package imports, which has what they need."""


def test_what_runs_plans_imports_no_extra_before_it_is_asked_to() -> None:
    production = {"plans", "integrations", "monitor", "views", "commands", "workflow"}
    paths = {
        path
        for path in _modules()
        if production & {*path.parts} or path.parent == Path()
        if path not in LOADED_BY_OTHERS
    }
    paths |= {HOMES[home] for home in tpcal._HOMES.values()}
    extras = {module for modules in EXTRAS.values() for module in modules}
    offenders = [
        f"{path} reaches {name}"
        for path in sorted(paths)
        for name in sorted(_reached(path, functions=False))
        if name.split(".")[0] in extras
    ]
    assert offenders == []


def test_no_two_public_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in _modules():
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_two_modules_have_one_file_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in _modules():
        if path.name not in SHARED_NAMES:
            homes[path.name].append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


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


MOST_PARAMETERS = 6


def _n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of parameters, without ``self`` and ``cls``."""
    named = function.args
    names = [arg.arg for arg in (*named.posonlyargs, *named.args, *named.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the parameters are the options of a command, which users name one by one."""
    return any(ast.unparse(d).startswith("click.command(") for d in function.decorator_list)


def _is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles the function, whose parameters can only be numbers and tensors."""
    return any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list)


def test_a_function_has_few_parameters() -> None:
    offenders = [
        f"{path}: {node.name} has {_n_parameters(node)}"
        for path in _modules()
        if path != Path("integrations/lmms_eval.py")  # its parameters are lmms-eval's model_args
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if _n_parameters(node) > MOST_PARAMETERS
        if not (_is_command(node) or _is_kernel(node))
    ]
    assert offenders == []


def test_every_module_says_what_it_holds() -> None:
    for path in _modules():
        assert ast.get_docstring(_tree(path)), path


def test_nothing_is_called_utils() -> None:
    assert not {"utils.py", "common.py", "helpers.py"} & {path.name for path in _modules()}


@pytest.mark.parametrize(
    "statement",
    [
        "import tpcal",
        "import tpcal.plans.plan_records",
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
    for name in tpcal.__all__:
        assert getattr(tpcal, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tpcal.nonsense


def test_the_version_is_one() -> None:
    assert PROJECT["project"]["version"] == tpcal.__version__
