"""Models inside wrappers: calls of the wrapper run the plan, and end with it."""

from __future__ import annotations

import pytest
import torch
from models import batch, prompt, tiny_llava
from torch import nn

import tpcal
from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.5, "attention"), Cut(6, 0.0)))


class Adapted(nn.Module):
    """Stands for a PEFT model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def get_base_model(self):
        return self.model

    def forward(self, **inputs):
        return self.model(**inputs)


@pytest.fixture
def model():
    return tiny_llava()


@pytest.mark.parametrize("wrap", [Adapted, nn.DataParallel, lambda m: nn.DataParallel(Adapted(m))])
def test_calls_of_a_wrapper_run_the_plan(model, wrap):
    inputs, wrapper = batch([prompt(3, 0, 4)]), wrap(model)
    with torch.no_grad():
        unpruned = model(**inputs).logits
        with tpcal.apply(model, PLAN):
            pruned = model(**inputs).logits
        assert tpcal.check(PLAN, wrapper) == []
        with tpcal.apply(wrapper, PLAN) as handle:
            assert is_applied(wrapper)
            assert is_applied(model)
            assert torch.equal(wrapper(**inputs).logits, pruned)
            assert handle.last.counts() == [((2, 8), (6, 0))]
        assert torch.equal(wrapper(**inputs).logits, unpruned)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch._dynamo.config.patch(recompile_limit=64)
def test_a_compiled_model_that_has_run_before_runs_the_plan_and_then_none():
    """Graphs that torch made without the plan are not used while it is applied."""
    torch.compiler.reset()
    model, plan = tiny_llava(n_layers=2), Plan((Cut(1, 0.5, "attention"),))
    inputs, compiled = batch([prompt(3, 0, 4)]), torch.compile(model, backend="eager")
    with torch.no_grad():
        unpruned = compiled(**inputs).logits
        with tpcal.apply(model, plan):
            pruned = model(**inputs).logits
        assert not torch.allclose(pruned, unpruned, atol=1e-3)
        with tpcal.apply(compiled, plan):
            torch.testing.assert_close(compiled(**inputs).logits, pruned, rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled(**inputs).logits, unpruned, rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_copies_on_several_devices_are_refused(model):
    copied = nn.DataParallel(model)
    copied.device_ids = [0, 1]
    with pytest.raises(
        UsageError, match=r"does not copy to several devices; got devices \[0, 1\]"
    ):
        unwrapped(copied)
