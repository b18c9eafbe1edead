"""The OpenAI endpoint: answers of the plan to the `openai` client, and what is refused."""

from __future__ import annotations

import base64
import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

import tpcal
from tpcal.calibrate.embedded import samples
from tpcal.cli import cli
from tpcal.integrations.openai_server import openai_server
from tpcal.plans.errors import UsageError
from tpcal.plans.extras import missing

absent = pytest.mark.skipif(
    bool(missing("serve")), reason=f"not installed: {', '.join(missing('serve'))}"
)


def message(sample):
    file = io.BytesIO()
    sample.image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": sample.question}]}]


def wait_for(port):
    for _ in range(600):
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not start")


@absent
def test_the_openai_client_gets_the_answers_of_the_plan(monkeypatch):
    from openai import OpenAI

    loaded = tpcal.ModelChoice("embedded", device="cpu").load()
    plan, asked, pruned = tpcal.Plan((tpcal.Cut(0, 0.0),)), samples("eval", 6), []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = openai_server(loaded, host="127.0.0.1", port=port, in_thread=True)
    try:
        wait_for(port)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

        def ask(sample):
            made = client.chat.completions.create(
                model="embedded", messages=message(sample), max_tokens=4
            )
            return made.choices[0].message.content

        with ThreadPoolExecutor(2) as pool:
            before = list(pool.map(ask, asked))
            with tpcal.apply(loaded.model, plan) as handle:
                pruned = list(pool.map(ask, asked))
                handle.off()
                off = list(pool.map(ask, asked))
    finally:
        server.kill_server()
    assert off == before
    assert pruned != before  # without any visual token
    assert [a == s.answer for a, s in zip(before, asked, strict=True)].count(True) >= 5


def test_continuous_batching_is_refused_with_the_reason():
    ran = CliRunner().invoke(cli, ["serve", "--plan", "plan.yaml", "--continuous-batching"])
    assert isinstance(ran.exception, UsageError) or ran.exit_code == 2
    assert "paged KV cache holds every token" in f"{ran.exception} {ran.output}"


@absent
@pytest.mark.parametrize(("revision", "name"), [(None, "org/name"), ("v1", "org/name@v1")])
def test_requests_name_the_revision_too(revision, name, monkeypatch):
    identity = SimpleNamespace(revision=revision)
    monkeypatch.setattr("transformers.cli.serve.Serve", lambda model, **_: model)
    loaded = SimpleNamespace(name="org/name", identity=identity)
    assert openai_server(loaded, host="localhost", port=1) == name


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr("tpcal.plans.extras.is_installed", lambda module: False)
    with pytest.raises(UsageError, match=r"pip install 'tpcal\[serve\]'"):
        openai_server(None, host="localhost", port=1)
