"""Plans in vLLM give the answers of tpcal's executor and keep the same tokens."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import served
from served import PLANS, Executor

from tpcal import Cut, Plan
from tpcal.calibrate.embedded import EmbeddedSample, samples
from tpcal.integrations.vllm import plugin

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

N = 60 if served.USES_V2 else 200  # Triton's interpreter is slow
CHUNKS = dict(zip(PLANS, (140, 128, 1024, 100, 110, 120, 60, 100), strict=True))
"""Tokens of a step: few, so that images are split between chunks."""


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANS)
def test_answers_and_kept_tokens_are_those_of_the_executor(
    name: str, executor: Executor, tmp_path: Path
) -> None:
    waited = _compare(PLANS[name], samples("eval", N), executor, tmp_path, CHUNKS[name])
    assert waited > 0 or CHUNKS[name] == 1024


@pytest.mark.timeout(600)
def test_coverage_alone_and_weighted_by_attention(executor: Executor, tmp_path: Path) -> None:
    weighted = Cut(layer=4, keep=0.2, selector="coverage", params={"attention_power": 1.0})
    plan = Plan(cuts=(Cut(layer=2, keep=0.5, selector="coverage"), weighted))
    assert _compare(plan, samples("eval", 60, seed=9), executor, tmp_path, 120) > 0


def _compare(
    plan: Plan, questions: list[EmbeddedSample], executor: Executor, folder: Path, chunk: int
) -> int:
    """Number of tokens that waited in the engine, whose answers are those of the executor."""
    wanted = executor.answers(plan, questions)
    with served.engine(plan, folder, max_num_batched_tokens=chunk) as engine:
        found = engine.answers(questions)
        waited = engine.n_waited
    served.assert_same(found, wanted, plan, questions)
    return waited


@pytest.mark.timeout(600)
def test_a_compiled_model_gives_the_same_answers(executor: Executor, tmp_path: Path) -> None:
    from vllm.config import CUDAGraphMode

    plan, questions = PLANS["three cuts"], samples("eval", 40, seed=8)
    with served.engine(plan, tmp_path, enforce_eager=False) as engine:
        found = engine.answers(questions)
        graphs = engine.runner.cudagraph_dispatcher.cudagraph_mode
    assert graphs == (CUDAGraphMode.PIECEWISE if served.ON_GPU else CUDAGraphMode.NONE)
    assert found.tokens == executor.answers(plan, questions).tokens


@pytest.mark.skipif(served.ON_GPU, reason="there the model above is split already")
@pytest.mark.timeout(600)
def test_a_model_split_at_attention_gives_the_same_answers(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.compilation.piecewise_backend import PiecewiseBackend
    from vllm.config import CompilationMode
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    plain, parts = EngineArgs.create_engine_config, []

    @wraps(plain)
    def split(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = plain(self, *args, **kwargs)
        chosen = config.compilation_config
        chosen.mode, chosen.backend = CompilationMode.VLLM_COMPILE, "eager"
        chosen.splitting_ops, chosen.compile_sizes = None, []
        chosen.set_splitting_ops_for_v1(all2all_backend="naive")
        return config

    def part(self: Any, *args: Any) -> Any:
        parts.append(self)
        return whole(self, *args)

    whole = PiecewiseBackend.__call__
    monkeypatch.setattr(PiecewiseBackend, "__call__", part)
    monkeypatch.setattr(EngineArgs, "create_engine_config", split)
    plan, questions = PLANS["attention"], samples("eval", 40, seed=8)
    with served.engine(plan, tmp_path, enforce_eager=False) as engine:
        parts.clear()
        found = engine.answers(questions)
    assert len(set(parts)) > 1
    wanted = executor.answers(plan, questions)
    assert (found.tokens, found.kept) == (wanted.tokens, wanted.kept)
