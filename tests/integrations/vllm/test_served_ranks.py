"""Tensor parallelism: two processes with half of the heads each answer as tpcal's executor does."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import served
import served_families
import torch
from served import PLANS, Answers, Executor

from tpcal import Cut, Plan
from tpcal.calibrate.embedded import samples

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usual,
    pytest.mark.skipif(
        served.ON_GPU and torch.cuda.device_count() < 2, reason="needs two devices"
    ),
]

N = 60
RANKS = {
    "tensor_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "worker_extension_cls": "served.RecordsCuts",
    "settings": {"untried": True} if served.ON_GPU else {},
}


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["three cuts", "attention", "the question", "means"])
def test_answers_and_kept_tokens_are_those_of_the_executor(
    name: str, executor: Executor, tmp_path: Path
) -> None:
    plan, questions = PLANS[name], samples("eval", N, seed=5)
    asked = [(served.prompt(s.question), [s.image]) for s in questions]
    found = _served(plan, tmp_path, asked, max_num_batched_tokens=120)
    found.tokens = [served.until_end(tokens) for tokens in found.tokens]
    served.assert_same(found, executor.answers(plan, questions), plan, questions)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("n_key_heads", [1, 2])
def test_grouped_queries_with_key_heads_that_processes_share(
    n_key_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(served_families.TEXT, "num_key_value_heads", n_key_heads)
    save, prompt = served_families.FAMILIES["Qwen2_5_VLForConditionalGeneration"]
    model, asked = tmp_path / "model", served_families.asked(prompt)
    model.mkdir()
    save(model)
    cuts = (Cut(2, 0.5, "attention"), Cut(4, 0.3, "dart"), Cut(6, 0.0))
    wanted = served_families.answers(model, Plan(cuts=cuts), asked)
    how = {"n_tokens": served_families.N_TOKENS, "min_tokens": served_families.N_TOKENS}
    limit = {"image": 1, "video": 0}
    options = {"model": model, "max_num_batched_tokens": 64, "limit_mm_per_prompt": limit}
    found = _served(Plan(cuts=cuts), tmp_path, asked, how, **options)
    assert (found.prompts, found.kept) == (wanted.prompts, wanted.kept)
    assert found.tokens == wanted.tokens


def _served(
    plan: Plan, folder: Path, asked: Any, how: Any = MappingProxyType({}), **options: Any
) -> Answers:
    """The answers of two processes, which kept the same tokens, and in which tokens waited."""
    with served.engine(plan, folder, **RANKS, **options) as engine:
        engine.llm.collective_rpc("record_cuts")
        outputs = engine.generate(asked, **how)
        (kept, n_waited), second = engine.llm.collective_rpc("cuts")
        assert second == (kept, n_waited)
        assert n_waited > 0
        return engine.noted(outputs, kept)
