"""Plans on models that torch.compile made graphs of."""

from __future__ import annotations

import logging
from importlib import import_module

import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.torch_compile import COMPILED
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.5, "attention"), Cut(6, 0.0)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_compiled_decoder_keeps_the_law(name: str) -> None:
    logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)  # thousands of lines
    verdict = COMPILED.judge(Trial(import_module(f"tiny.{name}").build("sdpa")))
    assert verdict.holds, verdict.detail


def test_too_few_graphs_for_the_layers_are_one_warning_and_none_are_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_llava()
    decoder = model.model.language_model
    inputs = batch([prompt(3, 0, 4)])
    with apply(model, PLAN):
        expected = model(**inputs).logits
    graphs: list[object] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    decoder.compile(backend=backend)
    made = decoder._compiled_call_impl
    with caplog.at_level(logging.WARNING), apply(model, PLAN):
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
    assert not graphs
    [warning] = caplog.messages
    assert "needs up to 32 graphs of one function for 8 layers and stops at 8" in warning
    assert "torch._dynamo.config.recompile_limit = 32" in warning
    assert decoder._compiled_call_impl is made
    torch.compiler.reset()
