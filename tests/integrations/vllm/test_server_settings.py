"""What users write, and what other processes of the server receive."""

from __future__ import annotations

from pathlib import Path

import pytest

import tpcal
from tpcal import Cut, Plan
from tpcal.integrations.vllm import server_settings
from tpcal.plans.errors import UsageError

PLAN = Plan(name="half", cuts=(Cut(layer=2, keep=0.5, selector="diversity"),))


@pytest.fixture
def path(tmp_path: Path) -> str:
    tpcal.save_plan(PLAN, tmp_path / "plan.yaml")
    return str(tmp_path / "plan.yaml")


def test_a_plan_is_found_in_both_places(path: str) -> None:
    by_option = server_settings.read({"tpcal": {"plan": path}}, {})
    by_variable = server_settings.read({}, {"TPCAL_PLAN": path})
    assert by_option == by_variable
    assert by_option is not None
    assert by_option.plan == PLAN


def test_a_preset_is_scaled_to_the_model(path: str) -> None:
    found = server_settings.read({"tpcal": {"plan": "preset:divprune@0.22"}}, {})
    assert found is not None
    assert found.scaled(8, 144).plan == tpcal.load_plan("preset:divprune@0.22", 8, 144)
    own = server_settings.read({"tpcal": {"plan": path}}, {})
    assert own is not None
    assert own.scaled(8, 144) == own


def test_a_plan_is_found_in_its_folder(path: str) -> None:
    folder = Path(path).parent
    Path(path).rename(folder / "tpcal_plan.yaml")
    found = server_settings.read({"tpcal": {"plan": str(folder)}}, {})
    assert found is not None
    assert found.plan == PLAN


def test_other_processes_get_the_plan_itself(path: str) -> None:
    found = server_settings.read({"tpcal": {"plan": path, "untried": True}}, {})
    assert found is not None
    Path(path).unlink()
    assert server_settings.received({"tpcal": found.passed_on()}) == found


def test_without_a_plan_nothing_happens() -> None:
    assert server_settings.read({}, {}) is None
    assert server_settings.read({"another plugin": {"plan": "x"}}, {}) is None


@pytest.mark.parametrize("variable", ["1", "yes"])
def test_the_kill_switch_wins(path: str, variable: str) -> None:
    assert server_settings.read({"tpcal": {"plan": path}}, {"TPCAL_OFF": variable}) is None
    assert server_settings.read({"tpcal": {"plan": path, "off": True}}, {}) is None
    assert server_settings.read({"tpcal": {"plan": path}}, {"TPCAL_OFF": "0"}) is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("plan.yaml", 'must be a mapping such as {"plan": "plan.yaml"}; got plan.yaml.'),
        ({"plans": "plan.yaml"}, "has no setting plans. Known: plan, off, untried."),
        ({"plan": "missing.yaml"}, "No plan at missing.yaml."),
        ({"plan": "x", "off": "yes"}, "off must be true or false; got yes."),
    ],
)
def test_wrong_settings_are_refused(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("{", r"\{")):
        server_settings.read({"tpcal": given}, {})
