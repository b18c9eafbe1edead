from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tpcal.planner.search.ledger import open_study
from tpcal.planner.search.other_processes import measuring
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.storage import lock_of, open_storage
from tpcal.plans.errors import UsageError


def one_trial(storage: Path | str) -> None:
    """A study with one measured trial."""
    study = open_study(open_storage(storage), "test", RepeatableTPE(0))
    trial = study.ask()
    with measuring(trial):
        trial.report(0.25, 7)
    study.tell(trial, 0.5)


def test_a_lock_that_a_killed_process_left_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna releases it after 30 s, as long as the lock leads to a file, whose age it asks."""
    monkeypatch.chdir(tmp_path)
    journal = Path("out/p/study.journal")
    open_storage(journal)
    lock_of(journal).acquire()  # and the process dies
    link = tmp_path / "out/p/study.journal.lock"
    assert link.is_symlink()
    assert link.samefile(journal)


def test_optuna_reads_our_journal_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "study.journal"
    one_trial(path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    (trial,) = optuna.load_study(study_name="test", storage=storage).trials
    assert trial.value == 0.5
    assert trial.intermediate_values == {7: 0.25}


def test_half_a_line_is_cut_off_by_whoever_writes_next(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    one_trial(path)
    opened = open_storage(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":8,"half a li')  # another process is killed while it writes
    study = open_study(opened, "test", RepeatableTPE(0))
    study.tell(study.ask(), 0.75)
    again = optuna.load_study(study_name="test", storage=open_storage(path))
    assert [trial.value for trial in again.trials] == [0.5, 0.75]
    assert b"half" not in path.read_bytes()


def test_a_journal_that_cannot_grow_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    one_trial(path)
    study = open_study(open_storage(path), "test", RepeatableTPE(0))
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole), limits[1]))  # as a disk that is full
    try:
        with pytest.raises(UsageError, match=r"study\.journal cannot be written: File too large"):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    study.tell(study.ask(), 0.75)  # once there is room again, it goes on


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_storage(tmp_path: Path, kind: str) -> None:
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UsageError, match="^storage must be a writable file; got "):
        open_storage(path)


@pytest.mark.parametrize("content", [b"no journal\n", b'{"op_code":0}\n', b"[]\n", b"\xff\n"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^storage must be an Optuna journal; got .* Delete it"):
        open_storage(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("grpc://localhost:1", r"gRPC proxy of Optuna \(grpc://host:port\); got grpc://localhost:1, where none"),
        ("grpc://localhost:port", "gRPC proxy of Optuna .* got grpc://localhost:port, where none"),
        ("postgresql+psycopg://me:secret@localhost:1/x", r"got postgresql\+psycopg://me:\*\*\*@localhost:1/x: "),
        ("nosuch://me:secret@host/db", r"got nosuch://me:\*\*\*@host/db: "),
    ],
)  # fmt: skip
def test_a_storage_that_does_not_answer_is_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setattr("tpcal.planner.search.storage._LONGEST_START_S", 0.1)
    with pytest.raises(UsageError, match=f"^storage must be .*{message}") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:x@s3cret@localhost:1/db",
        "postgresql+psycopg://me:x%40s3cret@localhost:1/db",
        "postgresql+psycopg://localhost:1/db?user=me&password=s3cret",
        "postgresql+psycopg://me@localhost:1/db?sslpassword=s3cret",
        "postgresql+psycopg://me:12@s3cret:x@localhost:1/db",
        "mysql+pymysql://me:x@s3cret@localhost:1/db",
        "nosuch://me:x/s3cret@localhost/db",
        "grpc://me:s3cret@localhost:1",
        "grpc://me:x@s3cret@localhost:port",
        "grpc://localhost:1?token=s3cret",
        "postgresql:me:s3cret@localhost/db",
        "postgresql:/me:s3cret@localhost/db",
        "host=localhost password=s3cret",
    ],
)
def test_no_form_of_a_password_is_told_or_becomes_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("tpcal.planner.search.storage._LONGEST_START_S", 0.1)
    monkeypatch.setattr("tpcal.planner.search.storage.time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="^storage ") as caught:
        open_storage(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UsageError, match=r"needs a driver that is not installed\. .*pymysql"):
        open_storage("mysql+pymysql://me:secret@localhost/x")
