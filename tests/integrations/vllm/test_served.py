"""Plans in vLLM give the answers of tpcal's executor and keep the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import served
from served import PLANS, Engine, Executor

from tpcal.calibrate.embedded import samples

pytestmark = [pytest.mark.vllm, pytest.mark.usual]
served.prepare_process()

N = 200
CHUNKS = dict(zip(PLANS, (192, 128, 1024, 100, 300), strict=True))
"""Tokens of a step: few, so that images are split between chunks."""


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor()


@pytest.mark.parametrize("name", PLANS)
def test_answers_and_kept_tokens_are_those_of_the_executor(
    name: str, executor: Executor, tmp_path: Path
) -> None:
    questions = samples("eval", N)
    wanted = executor.answers(PLANS[name], questions)
    with served.engine(PLANS[name], tmp_path, max_num_batched_tokens=CHUNKS[name]) as engine:
        found = engine.answers(questions)
        waited = engine.n_waited
    assert found.prompts == wanted.prompts
    wrong = [i for i in range(N) if found.tokens[i] != wanted.tokens[i]]
    assert wrong == []
    assert found.kept == wanted.kept
    assert waited > 0 or CHUNKS[name] == 1024
