"""No credential in text, wherever it stands; no place of a machine in a command."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tpcal.plans.errors import (
    BudgetError,
    FitError,
    GuardrailError,
    RunFailed,
    TpcalError,
    UsageError,
)
from tpcal.plans.redaction import redacted, redacted_data, without_machine

URLS = {
    "postgresql+psycopg://me:s3cret@host:5432/db": "postgresql+psycopg://me:***@host:5432/db",
    "postgresql://me:x@s3cret@host/db": "postgresql://me:***@host/db",
    "postgresql://me:x%40s3cret@host/db": "postgresql://me:***@host/db",
    "mysql://me:x/s3cret?y#z@host/db": "mysql://me:***@host/db",
    "postgresql://host/db?user=me&password=s3cret": "postgresql://host/db?user=***&password=***",
    "postgresql://host/db?password=x@s3cret": "postgresql://***",
    "postgresql://me:x?y=s3cret@host/db": "postgresql://***",
    "postgresql://host/db?sslpassword=s3cret&sslmode=require": (
        "postgresql://host/db?sslpassword=***&sslmode=***"
    ),
    "grpc://me:s3cret@host:13000": "grpc://me:***@host:13000",
    "grpc://s3cret@host": "grpc://***@host",
    "grpc://host:1?s3cret": "grpc://host:1?***",
    "https://host/x#access_token=s3cret": "https://host/x#access_token=***",
    "redis://:s3cret@host/0": "redis://:***@host/0",
}


@pytest.mark.parametrize("url", URLS)
def test_the_secret_of_a_url_is_hidden_and_the_rest_is_not(url: str) -> None:
    assert redacted(url) == URLS[url]
    assert "s3cret" not in redacted(f"cannot open {url}, sorry", url)


@pytest.mark.parametrize("url", [u for u in URLS if "s3cret@" in u and "://s3" not in u])
def test_a_part_of_a_password_that_a_library_repeats_is_hidden_too(url: str) -> None:
    for said in (
        'no host "s3cret@host"',
        "port s3cret",
        "b's3cret'",
        "x@s3cret",
        "user me:s3cret",
    ):
        assert "s3cret" not in redacted(said, url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///study.db",
        "grpc://localhost:13000",
        "http://localhost:8080/x",
        "https://huggingface.co/org/name@v1",
        "postgresql+psycopg://host/db",
        "token: 5, max_new_tokens=16, 3 tokens",
        "org/name@revision",
        "What is 1/2?",
    ],
)
def test_what_holds_no_secret_stays(url: str) -> None:
    assert redacted(url, url, environ={}) == url


def test_secrets_of_the_environment_are_hidden_wherever_they_stand() -> None:
    environ = {
        "HF_TOKEN": "hf-unusual-1",
        "PGPASSWORD": "hunter22",
        "HTTPS_PROXY": "http://u:prox%40y@proxy:1",
        "AWS_SECRET_ACCESS_KEY": "a/b+c/0123456789",
        "PWD": "/home/me/work",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    said = "'hf-unusual-1', hunter22 a/b+c/0123456789 prox@y prox%40y"
    assert redacted(said, environ=environ) == "'***', *** *** *** ***"
    assert redacted("1 false /home/me/work", environ=environ) == "1 false /home/me/work"


def test_tokens_of_known_kinds_are_hidden_whoever_brought_them() -> None:
    said = (
        "hf_abcdefghijklmnopqrst Illegal header b'Bearer abc.def\\n' "
        "host=h password='a b' user=me {'password': 'xyz'} api_key=abc ghp_0123456789abcdefghij"
    )
    assert redacted(said, environ={}) == (
        "*** Illegal header b'Bearer ***\\n' "
        "host=h password=*** user=me {'password': ***} api_key=*** ***"
    )


@pytest.mark.parametrize("kind", [UsageError, GuardrailError, RunFailed])
def test_no_deliberate_error_repeats_a_secret(
    kind: type[TpcalError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-a-new-kind")
    said = "401 Bearer x.y.z for https://me:s3cret@hub/api?token=s3cret, of-a-new-kind"
    for error in (kind(said), FitError("plan", [said]), BudgetError(said, 0.1)):
        assert "401 Bearer *** for https://me:***@hub/api?token=***" in str(error)
        assert "new-kind" not in str(error)


def test_data_is_cleaned_in_depth() -> None:
    data = {"command": "x --storage a://b:s3@c", "n": 3, "list": ["a://b:s3@c"], "none": None}
    clean = {"command": "x --storage a://b:***@c", "n": 3, "list": ["a://b:***@c"], "none": None}
    assert redacted_data(data) == clean


def test_paths_are_relative_or_a_name_behind_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": "/home/me"}
    digest = hashlib.sha256(b"/data/secret project").hexdigest()[:8]
    for word, shown in {
        f"{tmp_path}/a/b": "a/b",
        str(tmp_path): ".",
        "/home/me": "~",
        "--out=/home/me/x": "--out=~/x",
        "/data/secret project/calib.jsonl": f"[{digest}]/calib.jsonl",
        "--data=/data/secret project/calib.jsonl": f"--data=[{digest}]/calib.jsonl",
        "-o/data/secret project/calib.jsonl": f"-o[{digest}]/calib.jsonl",
        "../vlm": "../vlm",
        "org/name": "org/name",
        "--budget=1/2": "--budget=1/2",
    }.items():
        assert without_machine(word, environ) == shown
