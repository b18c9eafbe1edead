"""What the executor keeps away from the hot path: waits for the device, launches, and hooks."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from models import batch, prompt, tiny_llava
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.emulated_gpu import EmulatedGpu
from benchmarks.stopwatch import stopwatch
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

_WAITS = {
    *(Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.nonzero, torch.nonzero, Tensor.cpu, Tensor.numpy, torch.equal),
    *(Tensor.masked_select, torch.masked_select, torch.where),
}


class Waits(TorchFunctionMode):
    """Counts calls whose result a GPU would have to send back before the program goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _WAITS and not (function is torch.where and len(args) == 3):
            self.calls[function.__name__] += 1
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            by_mask = [i for i in index if isinstance(i, Tensor) and i.dtype == torch.bool]
            self.calls["by mask"] += len(by_mask)
        return function(*args, **(kwargs or {}))


def _waits(model: Any, inputs: dict[str, Tensor]) -> int:
    with Waits() as waits, torch.no_grad():
        model(**inputs, logits_to_keep=1)
    return waits.calls.total()


@pytest.mark.parametrize("selector", ["attention", "random", "visionzip"])
def test_a_prefill_waits_for_the_device_once(selector: str) -> None:
    # Selectors that pick token after token, or compare images, wait a few times more.
    model, inputs = tiny_llava(), batch([prompt(5, 0, 9), prompt(2, 0, 3, 0, 4)])
    plan = Plan((Cut(2, 0.5, selector), Cut(4, 0.25, selector), Cut(6, 0.0)))
    unpruned = _waits(model, inputs)
    with apply(model, plan):
        assert _waits(model, inputs) == unpruned + 1


@pytest.mark.parametrize("padded", [False, True])
def test_a_decode_step_does_not_wait_and_layers_are_hooked_only_for_padded_rows(
    padded: bool,
) -> None:
    model = tiny_llava()
    prompts = [prompt(5, 0, 9), prompt(2, 0, 4)] if padded else [prompt(5, 0, 9)]
    inputs = batch(prompts, mask=padded)
    layer, hooked = model.model.language_model.layers[5], []
    with apply(model, Plan((Cut(2, 0.5, "attention"),))), torch.no_grad():
        cache = model(**inputs).past_key_values
        step = {"input_ids": inputs["input_ids"][:, -1:], "past_key_values": cache}
        if padded:
            mask = inputs["attention_mask"]
            step["attention_mask"] = torch.cat([mask, mask[:, -1:]], dim=1)
        unhooked = layer.register_forward_hook(
            lambda *_: hooked.append(len(layer._forward_pre_hooks))
        )
        with Waits() as waits:
            model(**step)
        unhooked.remove()
    assert hooked == [int(padded)]
    assert padded or not waits.calls.total()  # a mask makes the model itself look at it
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        ([prompt(5, 0, 9)], 65),
        ([prompt(5, 0, 9), prompt(3, 0, 11)], 70),
        ([prompt(5, 0, 9), prompt(2, 0, 3, 0, 4)], 140),
    ],
    ids=["one", "equal", "ragged"],
)
def test_three_cuts_launch_few_kernels_beside_the_selectors(
    rows: list[list[int]], most: int
) -> None:
    model, inputs = copy.deepcopy(tiny_llava()), batch(rows, mask=len(rows) > 1)
    plan = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "attention"), Cut(6, 0.1, "attention")))
    with torch.no_grad(), EmulatedGpu() as gpu, apply(model, plan):
        gpu.put_module(model)
        here = {name: gpu.put(value) for name, value in inputs.items()}
        model(**here)  # the first prefill also makes the tables that all prefills read
        with stopwatch(gpu.launches.total) as spent:
            model(**here)
    assert 0 < spent["executor"] - spent["selection"] <= most
