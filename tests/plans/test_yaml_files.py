"""Files: what is read from anywhere, and what is written over and beside."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpcal.plans import temporary_files
from tpcal.plans.errors import UsageError
from tpcal.plans.yaml_files import dump_yaml, parse_yaml, read_bytes, write_atomic


def mode(path: Path) -> int:
    """Permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_written_again_keeps_its_permissions(
    tmp_path: Path, permissions: int
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("old")
    path.chmod(permissions)
    write_atomic(path, "new")
    assert (path.read_text(), mode(path)) == ("new", permissions)


def test_a_new_file_has_the_permissions_of_every_new_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "ours", "")
    (tmp_path / "any").touch()
    assert mode(tmp_path / "ours") == mode(tmp_path / "any")


def test_links_to_a_file_stay_and_lead_to_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "plan-7.yaml", tmp_path / "plan.yaml"
    target.write_text("old")
    link.symlink_to(Path("deep") / "plan-7.yaml")
    (tmp_path / "second").symlink_to(link)
    write_atomic(tmp_path / "second", "new")
    assert link.is_symlink()
    assert target.read_text() == link.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["plan-7.yaml"]


def test_a_link_that_leads_nowhere_gets_a_file_to_lead_to(tmp_path: Path) -> None:
    link = tmp_path / "plan.yaml"
    link.symlink_to("later.yaml")
    write_atomic(link, "new")
    assert (tmp_path / "later.yaml").read_text() == "new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="loop cannot be written: Too many levels"):
        write_atomic(tmp_path / "loop", "new")


def special(folder: Path, kind: str) -> tuple[Path, str]:
    """A pipe, device or folder, and what errors call it."""
    if kind == "pipe":
        os.mkfifo(folder / "pipe")
        return folder / "pipe", "a pipe"
    return (Path("/dev/zero"), "a device") if kind == "device" else (folder, "a folder")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_pipes_devices_and_folders_are_neither_read_nor_replaced(
    tmp_path: Path, kind: str
) -> None:
    path, said = special(tmp_path, kind)
    with pytest.raises(UsageError, match=f"must be a plan file; got {said}"):
        read_bytes(path, "plan", 100)
    with pytest.raises(UsageError, match=f"must be a regular file; got {said}"):
        write_atomic(path, "new")
    assert not path.is_file()


def test_names_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    for name, said in (("a\0b", "null byte"), ("a" * 300, "File name too long")):
        with pytest.raises(UsageError, match=f"cannot be read: .*{said}"):
            read_bytes(tmp_path / name, "plan", 100)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="No plan at"):
        read_bytes(tmp_path / "file" / "plan.yaml", "plan", 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a: !!int ""', "tag"),
        ("a: !!timestamp x", "tag"),
        ("a: !!bool x", "tag"),
        ("a: !!str 3", "tag"),
        ("a: 1" + "0" * 400, "at most 100 digits"),
        ("a: 0x" + "f" * 4000, "at most 100 digits"),
        ("a: 1" + ":1" * 400 + ".0", "at most 100 digits"),
        ("<<: {a: 1}", "merge keys"),
        ('a: "\\ud800"', "surrogate"),
        ('a: "\\e[2J"', "the escape character"),
        ("a: " + "[" * 60 + "]" * 60, "at most 32 deep"),
        ("a: [" + "1," * 30_000 + "]", "more values"),
        ("a: 2024-13-45", "must be plain YAML"),
    ],
)  # fmt: skip
def test_values_that_mean_harm_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_every_character_that_is_written_is_read_again() -> None:
    text = "".join(map(chr, (*range(0x20, 0x7F), *range(0x80, 0x100), 0x2026, 0x2028, 0x2029)))
    data = {"names": ["charts\x85", "\x85", f"a {text} b"]}
    assert parse_yaml(dump_yaml(data), "text") == data


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tpcal.plans import temporary_files\n"
        "_ = [make(Path(sys.argv[1])) for make in (temporary_files.new_file, temporary_files.new_folder)]\n"
        "print('made', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "made\n"
    write_atomic(tmp_path / "one", "")
    assert len(list(tmp_path.glob(f"{temporary_files.PREFIX}*"))) == 2, "those of the living stay"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    write_atomic(tmp_path / "two", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_writers_at_one_place_do_not_take_each_others_files(tmp_path: Path) -> None:
    code = (
        "import sys; from tpcal.plans.yaml_files import write_atomic\n"
        "for n in range(150): write_atomic(sys.argv[1], sys.argv[2] * 1000)"
    )
    path = tmp_path / "plan.yaml"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abc"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert path.read_text() in {letter * 1000 for letter in "abc"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_with_our_prefix_that_cannot_be_locked_stays(tmp_path: Path) -> None:
    handle, path = temporary_files.new_file(tmp_path)
    started = time.monotonic()
    write_atomic(tmp_path / "plan.yaml", "new")
    assert path.exists()
    assert time.monotonic() - started < 10
    os.close(handle)
    write_atomic(tmp_path / "plan.yaml", "new")
    assert not path.exists()


def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.yaml"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"plan\.yaml cannot be written: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def full(handle: int) -> None:
    """As the system answers when it finds no room for what was written."""
    os.write(os.open("/dev/full", os.O_WRONLY), b"x")
