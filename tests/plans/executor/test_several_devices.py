"""Layers on two GPUs, which exist in name only: an operation on tensors of both is an error.

The weights are placed by hand and accelerate's own hooks move what each layer gets, as with a
`device_map`. The arithmetic is that of the CPU, so the logits must be the same to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from models import batch, prompt, tiny_llava
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from benchmarks.emulated_gpu import DEVICE, EmulatedGpu, GpuTensor
from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.handle import apply, check
from tpcal.plans.families import find
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Condition, Cut, Plan
from tpcal.plans.selectors import _fused, min_layer, names

pytestmark = pytest.mark.usual

ONE, TWO = DEVICE, torch.device("cuda", DEVICE.index + 1)
PLANS = "content", "attention", "early"
"""Plans of the laws, with cuts before layers 2, 4 and 6 of 8; the last four layers are on `TWO`."""
ARCHITECTURES = (
    *("gemma3", "gemma4_shared", "idefics3", "llama4", "llava", "paligemma"),
    *("qwen2_5_vl", "qwen3_vl"),
)
"""Those that differ in structure, but for Kimi K2.5, which calls a kernel that CPUs do not have."""
CONDITIONAL = Plan((Cut(3, 0.5, "grid"), Cut(6, 0.0, condition=Condition(0.9, 0.9))))


@pytest.fixture(autouse=True)
def _plain_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_fused, "ENABLED", False)  # Triton cannot read the emulated devices
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def llava() -> PreTrainedModel:
    return tiny_llava()


def dispatched(model: PreTrainedModel, gpu: EmulatedGpu) -> PreTrainedModel:
    """A copy of the model with the second half of its layers, final norm and head on `TWO`."""
    model = copy.deepcopy(model)
    family, skipped = find(model), model._skip_keys_device_placement
    second = [*family.layers(model)[4:], family.final_norm(model), model.get_output_embeddings()]
    for part in second:
        gpu.put_module(part, TWO)
        add_hook_to_module(part, AlignDevicesHook(TWO, skip_keys=skipped))
    gpu.put_module(model, ONE)
    for part in model.modules():
        if _device(part) == ONE:
            add_hook_to_module(part, AlignDevicesHook(ONE, skip_keys=skipped))
    whole = AlignDevicesHook(ONE, io_same_device=True, skip_keys=skipped)
    add_hook_to_module(model, whole)
    model.hf_device_map = {"first": 0, "second": 1}
    return model


def _device(part: nn.Module) -> torch.device | None:
    """The device of a module's own weights; None if it has none."""
    found = [weight.device for weight in part._parameters.values() if weight is not None]
    return found[0] if found else None


def require_the_same(model: PreTrainedModel, run: Callable[[PreTrainedModel], Tensor]) -> None:
    """What a run gives on the CPU and on the two devices, to the bit."""
    wanted = run(model)
    with EmulatedGpu() as gpu:
        found = run(dispatched(model, gpu))
    torch.testing.assert_close(_on_cpu(found), wanted, rtol=0, atol=0)


def _on_cpu(values: Tensor) -> Tensor:
    return values.held if isinstance(values, GpuTensor) else values


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        pytest.param(
            n, plan, marks=[] if (n, plan) == ("qwen3_vl", "content") else pytest.mark.nightly
        )
        for n in ARCHITECTURES
        for plan in PLANS
    ],
)
def test_prefill_and_decoding_equal_those_of_one_device(name: str, plan: str) -> None:
    case = tiny.case(name, "sdpa")
    require_the_same(
        case.model, lambda model: Trial(replace(case, model=model)).pruned(plan, "left").logits
    )


@pytest.mark.parametrize(
    "selector",
    [pytest.param(n, marks=[] if n == "sparsevlm" else pytest.mark.nightly) for n in names()],
)
def test_selectors_choose_on_the_device_of_the_states(
    llava: PreTrainedModel, selector: str
) -> None:
    plan = Plan((Cut(min_layer(selector), 0.75, selector), Cut(6, 0.5, selector)))
    inputs = batch([prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1)])

    def logits(model: PreTrainedModel) -> Tensor:
        with apply(model, plan):
            return model(**inputs).logits

    require_the_same(llava, logits)


def test_conditions_are_measured_on_either_device(llava: PreTrainedModel) -> None:
    inputs = batch([prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1)])

    def masses(model: PreTrainedModel) -> Tensor:
        with apply(model, CONDITIONAL) as handle:
            model(**inputs)
        mass = handle.last.cuts[-1].text_to_visual
        assert handle.last.lengths[-1] < handle.last.lengths[4]
        return mass

    require_the_same(llava, masses)


def _steps(model: PreTrainedModel, cache: object, turns: Sequence[list[int]]) -> Tensor:
    """Logits of a conversation on one cache."""
    given, found = {compat.CACHE_NAME: cache}, []
    n = 0
    for at, ids in enumerate(turns):
        inputs = batch([ids], seed=at, mask=False)
        n += len(ids)
        mask = torch.ones(1, n, dtype=torch.int64)
        position_ids = torch.arange(n - len(ids), n)[None]
        call = {**inputs, **given, "attention_mask": mask, "position_ids": position_ids}
        found.append(model(**call, use_cache=True).logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("kind", ["dynamic", pytest.param("static", marks=pytest.mark.nightly)])
def test_turns_with_images_and_caches_follow_the_layers(llava: PreTrainedModel, kind: str) -> None:
    turns = [prompt(3, 0, 4), [30], prompt(2, 0, 3, seed=1), [31], [32]]
    plan = Plan((Cut(2, 0.5, "attention"), Cut(5, 0.25, "attention"), Cut(7, 0.0)))

    def logits(model: PreTrainedModel) -> Tensor:
        config = model.config.get_text_config()
        empty = DynamicCache(config=config)
        cache = empty if kind == "dynamic" else StaticCache(config=config, max_cache_len=80)
        with apply(model, plan):
            return _steps(model, cache, turns)

    require_the_same(llava, logits)


def test_flex_attention_needs_one_device(llava: PreTrainedModel) -> None:
    model = copy.deepcopy(llava)
    model.hf_device_map = {"first": 0, "second": 1, "rest": "cpu"}
    assert check(CONDITIONAL, model) == []
    with apply(model, CONDITIONAL):
        model.set_attn_implementation({"text_config": "flex_attention"})
        with pytest.raises(UsageError, match=r"must compute on one device, .*; got \['0', '1'\]"):
            model(**batch([prompt(3, 0, 4)]))
    assert "must compute on one device" in check(CONDITIONAL, model)[0]
    model.hf_device_map = {"first": 0, "rest": "disk"}
    assert check(CONDITIONAL, model) == []
