"""The example's server, under load on loopback, finds a planted drift and switches itself off."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from tpcal.plans.extras import missing

ABSENT = [*missing("monitor"), *missing("serve")]
FOLDER = Path(__file__).parents[2] / "examples" / "monitor"


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
def test_the_server_switches_its_plan_off_when_requests_bring_two_images(monkeypatch):
    import uvicorn

    # FastAPI looks the types of a function up in its module, which must therefore have a place.
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("server", "load_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from load_test import is_off, load
    from server import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_app(), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        before = load(url, 24, 1)
        after = load(url, 16, 2)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not is_off(before)
    assert "tpcal_requests_total 24.0" in before
    assert is_off(after)
    assert 'tpcal_alarm{kind="n_images"} 1.0' in after
    unpruned = next(line for line in after.splitlines() if line.startswith("tpcal_unpruned_total"))
    assert float(unpruned.split()[1]) > 0
