"""Paths that profiles and plans keep: found from anywhere, moved with the tree, no home in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import from_here, kept, last_part, locate, moved
from tpcal.plans.plan_records import ModelIdentity, Plan


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data beside it; home is elsewhere."""
    for folder in ("work/out/profile", "data", "home/vlm", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "calib.jsonl").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("typed", ["../data/calib.jsonl", "../work/../data/calib.jsonl"])
def test_a_path_is_kept_relative_to_its_file_and_found_from_anywhere(
    tree: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("out/profile")
    name = kept(typed, folder)
    assert name == "../../../data/calib.jsonl"
    assert from_here(name, folder) == "../data/calib.jsonl"
    assert kept(str(tree / "data" / "calib.jsonl"), folder) == name
    monkeypatch.chdir(tree / "data")
    assert from_here(name, tree / "work" / "out" / "profile") == "./calib.jsonl"
    shutil.move(tree / "work", tree / "other" / "work")
    shutil.move(tree / "data", tree / "other" / "data")
    monkeypatch.chdir(tree)
    here = locate(name, Path("other/work/out/profile"), "the profile", "--data")
    assert here == "./other/data/calib.jsonl"


def test_what_is_no_path_stays(tree: Path) -> None:
    (tree / "work" / "embedded").mkdir()
    for name in ("org/name", "llava-1.5-7b", "embedded", "org/name@main"):
        assert kept(name, Path("out")) == name
        assert locate(name, Path("out"), "the plan", "--model") == name
        assert last_part(name) == name


def test_a_folder_named_like_a_repository_is_a_path(tree: Path) -> None:
    (tree / "work" / "org" / "name").mkdir(parents=True)
    assert kept("org/name", Path()) == "./org/name"
    assert last_part("./org/name") == "name"


def test_home_is_not_spelled_out(tree: Path) -> None:
    assert kept(str(tree / "home" / "vlm"), Path("out")) == "~/vlm"
    assert locate("~/vlm", Path("out"), "the plan", "--model") == "~/vlm"
    assert kept(str(tree / "home" / "vlm"), tree / "home") == "./vlm"


def test_a_link_keeps_its_name(tree: Path) -> None:
    (tree / "work" / "blob").write_text("{}")
    (tree / "work" / "data.jsonl").symlink_to("blob")
    assert kept("data.jsonl", Path("out")) == "../data.jsonl"


def test_what_has_gone_names_the_option_that_mends_it(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"out/profile names .*gone.jsonl, and nothing is there"):
        locate("../gone.jsonl", Path("out/profile"), "out/profile", "--data")
    with pytest.raises(UsageError, match="Name where it is now with --model"):
        locate("~/gone", Path(), "plan.yaml", "--model")


def test_a_plan_is_kept_anew_where_it_is_written(tree: Path) -> None:
    made_of = {"data": {"data": "../../../data/calib.jsonl", "n": 3}}
    plan = Plan(model=ModelIdentity(4, "../../tiny"), provenance=made_of)
    there = moved(plan, Path("out/profile"), Path("out"))
    assert there.model is not None
    assert there.model.name == "../tiny"
    assert there.provenance == {"data": {"data": "../../data/calib.jsonl", "n": 3}}
    assert moved(there, Path("out"), Path("out/profile")) == plan
    hub = Plan(model=ModelIdentity(4, "org/name"), provenance={"data": None})
    assert moved(hub, Path("out"), Path()) == hub
