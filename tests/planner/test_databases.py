"""Searches on a PostgreSQL server of its own, from Debian's package: pytest -m postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from searchers import check_together, check_what_a_killed_one_leaves

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]


def program(name: str) -> str:
    """Path of one of the server's programs, which Debian keeps out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(places[-1]) if places else None)
    if found is None:
        pytest.skip(f"{name} is not installed; apt-get install postgresql brings it")
    return found


@pytest.fixture
def server() -> Iterator[str]:
    """URL of a server that lives for one test; it listens on a socket in a folder of its own."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    # PostgreSQL refuses to run as root, and others may not read root's tmp_path
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        data = f"{folder}/data"
        run(initdb, "-D", data, "-U", "tpcal", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses='' -k {folder} -F"
        run(pg_ctl, "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tpcal@/postgres?host={folder}"
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "stop")


def test_two_processes_share_a_search_on_postgresql(server: str) -> None:
    check_together(server)


def test_the_other_process_does_what_a_killed_one_leaves_on_postgresql(server: str) -> None:
    check_what_a_killed_one_leaves(server)
