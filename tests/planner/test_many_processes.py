from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tpcal.planner import others
from tpcal.planner.others import Others, give_up, measuring
from tpcal.planner.search import search
from tpcal.planner.storage import open_storage
from tpcal.planner.study import Repeatable, enqueue, open_study

SCRIPT = Path(__file__).parent / "searching.py"
N_TRIALS = 20


@contextmanager
def searching(storage: Path | str, pause_s: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """A process that searches; it is killed if it still runs at the end."""
    command = [sys.executable, str(SCRIPT), str(storage), str(N_TRIALS), str(pause_s)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process found, once it ends."""
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 0
    return json.loads(output.splitlines()[-1])


def numbers_and_states(storage: Path | str) -> list[tuple[int, TrialState, int | None]]:
    opened = open_storage(storage)
    (name,) = optuna.get_all_study_names(opened)
    trials = optuna.load_study(study_name=name, storage=opened).get_trials()
    return [(t.number, t.state, t.user_attrs.get("seed_place")) for t in trials]


def check_together(storage: Path | str) -> None:
    """Two processes on one storage do the trials of one, and find the same plan."""
    with searching(storage) as one, searching(storage) as other:
        first, second = result(one), result(other)
    assert first["plans"] + second["plans"] <= N_TRIALS  # repeats are not measured
    assert min(first["plans"], second["plans"]) > 0
    assert first["trials"] == second["trials"] == N_TRIALS
    assert first["cuts"] == second["cuts"]
    done = [seed for _, state, seed in numbers_and_states(storage) if state != TrialState.FAIL]
    seeds = [seed for seed in done if seed is not None]
    assert sorted(seeds) == list(range(len(seeds)))  # each once


def test_two_processes_share_the_trials_of_a_search(tmp_path: Path) -> None:
    check_together(tmp_path / "search.log")


def test_the_other_process_does_what_a_killed_one_leaves(tmp_path: Path) -> None:
    storage = tmp_path / "search.log"
    with searching(storage) as other:
        with searching(storage, pause_s=60) as victim:  # for ever in its first plan
            assert victim.stdout is not None
            assert victim.stdout.readline().startswith("measuring")
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
        assert result(other)["trials"] == N_TRIALS
    trials = numbers_and_states(storage)
    assert [state for _, state, _ in trials].count(TrialState.FAIL) == 1
    lost = next(seed for _, state, seed in trials if state == TrialState.FAIL)
    assert (TrialState.COMPLETE, lost) in [(state, seed) for _, state, seed in trials]


def test_who_has_nothing_left_to_start_waits_for_the_others(
    make_world: Any, make_measurer: Any, tmp_path: Path
) -> None:
    storage, world = tmp_path / "search.log", make_world(n_samples=24)
    with searching(storage) as other:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        mine = search(
            world.profile(), 0.3, measurer=make_measurer(world), n_trials=N_TRIALS, storage=storage
        )
        found = result(other)
    assert [[c.layer, c.keep, c.selector] for c in mine.plan.cuts] == found["cuts"]


@pytest.fixture
def study() -> optuna.Study:
    return open_study(open_storage(None), "test", Repeatable("random", 0))


def of_another_host(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> optuna.Trial:
    """A trial that a process of another host has begun."""
    trial = study.ask()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with measuring(trial):
        pass
    monkeypatch.undo()
    return trial


def test_a_silent_trial_of_another_host_is_given_up(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, now = of_another_host(study, monkeypatch), [1000.0]
    monkeypatch.setattr(others.time, "monotonic", lambda: now[0])
    watch = Others(study)
    assert [t.number for t in watch.at_work()] == [0]
    now[0] += others.SILENCE_S
    assert len(watch.at_work()) == 1
    trial.report(0.5, 0)  # a sign of life
    now[0] += 1
    assert len(watch.at_work()) == 1
    trial.set_user_attr("beat", 1)  # another
    now[0] += others.SILENCE_S
    assert len(watch.at_work()) == 1
    now[0] += others.SILENCE_S + 1
    assert watch.at_work() == []
    assert study.get_trials()[0].state == TrialState.FAIL


def test_who_measures_for_long_gives_signs_of_life(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "BEAT_S", 0.01)
    trial = study.ask()
    with measuring(trial):
        for _ in range(500):
            if study.get_trials()[0].user_attrs.get("beat", 0) > 2:
                break
            others.time.sleep(0.01)
    assert study.get_trials()[0].user_attrs["beat"] > 2
    assert study.get_trials()[0].user_attrs["owner"] == others.owner()


def test_what_this_process_left_running_is_given_up(study: optuna.Study) -> None:
    with measuring(study.ask()):
        pass
    assert Others(study).at_work() == []
    assert study.get_trials()[0].state == TrialState.FAIL


def test_giving_up_what_another_process_has_finished_changes_nothing(study: optuna.Study) -> None:
    trial = study.ask()
    study.tell(trial, 1.0)
    give_up(study, trial.number)
    assert study.get_trials()[0].state == TrialState.COMPLETE


@pytest.mark.parametrize("place", [3, None])
def test_of_two_trials_queued_for_one_plan_the_older_one_counts(
    study: optuna.Study, place: int | None
) -> None:
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    enqueue(study, {"x": 0.5}, place)
    enqueue(study, {"x": 0.5}, place)
    enqueue(study, {"x": 0.7}, None if place is None else 4)
    first, second, third, free = (study.ask() for _ in range(4))
    watch = Others(study)
    assert [watch.have(t) for t in (first, second, third, free)] == [False, True, False, False]
    assert [watch.n_before(t) for t in (first, third)] == [0, 2]
    give_up(study, first.number)
    assert not watch.have(second)
