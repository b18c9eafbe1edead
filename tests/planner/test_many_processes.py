from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from searchers import N_TRIALS, check_together, check_what_a_killed_one_leaves, result, searching
from searches import search

from tpcal.planner.search import other_processes
from tpcal.planner.search.ledger import enqueue, open_study
from tpcal.planner.search.other_processes import OtherProcesses, give_up, measuring
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.storage import open_storage


def test_two_processes_share_the_trials_of_a_search(tmp_path: Path) -> None:
    check_together(tmp_path / "search.log")


PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="localhost", port=int(sys.argv[2]))
"""


@pytest.mark.nightly
def test_two_processes_share_a_search_through_a_grpc_proxy(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROXY, f"sqlite:///{tmp_path}/search.db", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as proxy:
        try:
            check_together(f"grpc://localhost:{port}")
        finally:
            proxy.kill()


def test_the_other_process_does_what_a_killed_one_leaves(tmp_path: Path) -> None:
    check_what_a_killed_one_leaves(tmp_path / "search.log")


def test_who_has_nothing_left_to_start_waits_for_the_others(
    make_world: Any, make_measurer: Any, tmp_path: Path
) -> None:
    storage, world = tmp_path / "search.log", make_world(n_samples=24)
    with searching(storage) as other:
        other.lines.readline()  # it has begun
        mine = search(
            world.profile(), 0.3, measurer=make_measurer(world), n_trials=N_TRIALS, storage=storage
        )
        found = result(other)
    assert [[c.layer, c.keep, c.selector] for c in mine.plan.cuts] == found["cuts"]


@pytest.fixture
def study() -> optuna.Study:
    return open_study(open_storage(None), "test", RepeatableTPE(0))


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
    monkeypatch.setattr(other_processes.time, "monotonic", lambda: now[0])
    watch = OtherProcesses(study)
    assert [t.number for t in watch.at_work()] == [0]
    now[0] += other_processes.SILENCE_S
    assert len(watch.at_work()) == 1
    trial.report(0.5, 0)  # a sign of life
    now[0] += 1
    assert len(watch.at_work()) == 1
    trial.set_user_attr("beat", 1)  # another
    now[0] += other_processes.SILENCE_S
    assert len(watch.at_work()) == 1
    now[0] += other_processes.SILENCE_S + 1
    assert watch.at_work() == []
    assert study.get_trials()[0].state == TrialState.FAIL


def test_who_measures_for_long_gives_signs_of_life(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_processes, "BEAT_S", 0.01)
    trial = study.ask()
    with measuring(trial):
        for _ in range(500):
            if study.get_trials()[0].user_attrs.get("beat", 0) > 2:
                break
            other_processes.time.sleep(0.01)
    assert study.get_trials()[0].user_attrs["beat"] > 2
    assert study.get_trials()[0].user_attrs["owner"] == other_processes.owner()


def test_what_this_process_left_running_is_given_up(study: optuna.Study) -> None:
    with measuring(study.ask()):
        pass
    assert OtherProcesses(study).at_work() == []
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
    watch = OtherProcesses(study)
    assert [watch.have(t) for t in (first, second, third, free)] == [False, True, False, False]
    assert [watch.n_before(t) for t in (first, third)] == [0, 2]
    give_up(study, first.number)
    assert not watch.have(second)
