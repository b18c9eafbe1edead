"""Thousands of broken files: make fuzz. What it finds goes into corpus/, which every run tries."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fuzz import tried
from fuzz.broken import TEXTS, Lines, edited, edits, lines, mangled, with_lines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from searches import search

from tpcal.calibrate.profile import MASSES, MEASURES
from tpcal.plans import plan_file

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(7200)]
N = int(os.environ.get("FUZZ_EXAMPLES", "10000"))
PLAN = (tried.SEEDS / "plan.yaml").read_text(encoding="utf-8")
Report = Callable[[str, Counter[str]], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Says how many files were tried, refused and accepted, past pytest's capturing."""

    def say(what: str, tally: Counter[str]) -> None:
        with capsys.disabled():
            print(f"\n{what}: {tally.total()} tried, {tally['refused']} refused, ", end="")
            print(f"{tally['accepted']} accepted as they should be; 0 tracebacks, 0 hangs")

    return say


@pytest.fixture
def places(tmp_path: Path) -> Callable[[], Path]:
    """A new empty folder at each call; the one before is removed."""
    numbers = itertools.count()

    def new() -> Path:
        shutil.rmtree(tmp_path / "files", ignore_errors=True)
        made = tmp_path / "files" / str(next(numbers))
        made.mkdir(parents=True)
        return made

    return new


def try_many(source: st.SearchStrategy[Any], run: Callable[[Any], bool], n: int) -> Counter[str]:
    """Runs ``n`` examples; hypothesis shows the one that fails."""
    tally: Counter[str] = Counter()

    @settings(
        max_examples=n,
        deadline=None,
        phases=[Phase.generate],  # changes are few as they are; making them fewer takes long
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(source)
    def one(example: Any) -> None:
        tally["accepted" if run(example) else "refused"] += 1

    one()
    return tally


def written(data: Any) -> str:
    """YAML of any data, with the digest that fits it where it had one."""
    if isinstance(data, dict) and "digest" in data:
        try:
            data["digest"] = plan_file._digest(data)
        except (TypeError, ValueError):
            data["digest"] = "sha256:0"
    return yaml.dump(data, Dumper=tried.Unaliased, sort_keys=False, allow_unicode=True)


def plans() -> st.SearchStrategy[str]:
    """Plan files changed in their values, half of them sealed again, and in their text."""
    data = yaml.safe_load(PLAN)
    sealed = data | {"digest": "sha256:0"}
    inside = [edits(d).map(lambda e, d=d: written(edited(d, e))) for d in (data, sealed)]
    return st.one_of(*inside, mangled(PLAN))


def test_plans(report: Report) -> None:
    report("plans", try_many(plans(), tried.plan, N))


def test_plan_files_by_command_line(
    report: Report, places: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def run(example: tuple[str, str]) -> bool:
        command, text = example
        path = places() / "plan.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return tried.command([command, str(path)])

    words = st.sampled_from(["check", "show"])
    report(
        "plans by command line", try_many(st.tuples(words, plans()), run, max(300, N * 3 // 100))
    )


def test_profiles(report: Report, places: Callable[[], Path]) -> None:
    data, arrays = tried.small_data(places())
    names = ("sample_group", *MEASURES, *MASSES)
    hurt = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 2.0, 1e30, "shape", "dtype", "gone"])

    def run(example: tuple[Any, dict[str, Any]]) -> bool:
        folder = places()
        tried.write_profile(folder, edited(data, example[0]), spoiled(arrays, example[1]))
        return tried.profile(folder)

    spoilers = st.one_of(
        st.just({}), st.just({}), st.dictionaries(st.sampled_from(names), hurt, max_size=2)
    )
    report("profiles", try_many(st.tuples(edits(data), spoilers), run, max(20, N // 20)))


def spoiled(arrays: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """Arrays with some of them changed in an element, in shape or type, or left out."""
    made = {name: np.array(array) for name, array in arrays.items()}
    for name, change in how.items():
        if change == "gone":
            del made[name]
        elif change == "shape":
            made[name] = made[name][..., :-1]
        elif change == "dtype":
            made[name] = made[name].astype(np.float64)
        elif made[name].dtype != np.int64:
            made[name][0, 0] = change
        else:
            made[name][0] = -1
    return made


def test_journals(report: Report, places: Callable[[], Path]) -> None:
    path = places() / "study.journal"
    search(tried.small_profile(), 0.4, measurer=tried.Formula(), n_trials=4, storage=path)
    text = path.read_text(encoding="utf-8")

    def run(example: Lines) -> bool:
        journal = places() / "study.journal"
        journal.write_bytes(with_lines(text, example).encode("utf-8", "surrogatepass"))
        return tried.journal(journal)

    report("journals", try_many(lines(text), run, max(20, N // 30)))


@pytest.mark.parametrize("name", ["evaluation", "bench"])
def test_figures(report: Report, places: Callable[[], Path], name: str) -> None:
    text = (tried.SEEDS / f"{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)

    def run(example: str) -> bool:
        path = places() / f"{name}.json"
        path.write_bytes(example.encode("utf-8", "surrogatepass"))
        return {"evaluation": tried.evaluation, "bench": tried.bench}[name](path)

    inside = edits(data, TEXTS).map(lambda e: json.dumps(edited(data, e), default=str))
    report(f"{name}s", try_many(st.one_of(inside, inside, mangled(text)), run, max(20, N // 20)))


def test_rows(report: Report, places: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (tried.SEEDS / "rows.jsonl").read_text(encoding="utf-8")

    def run(example: Lines) -> bool:
        folder = places()
        shutil.copy(tried.SEEDS / "red.png", folder / "red.png")
        path = folder / "rows.jsonl"
        path.write_bytes(with_lines(text, example).encode("utf-8", "surrogatepass"))
        return tried.rows(path)

    report("rows", try_many(lines(text), run, max(20, N // 50)))
