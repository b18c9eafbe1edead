"""Caches of every kind that transformers has: those that plans run with, and what they hold."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from models import batch, prompt, rows_alone, tiny_llava
from releases import skip_elsewhere
from tiny import case
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.cache import cache_layer, kv_bytes
from tpcal.plans.executor.compat import CACHE_NAME
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.pruned_layers import PrunedQuantizedKV, n_physical
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

FIRST = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))


def test_layers_are_made_where_the_cache_makes_them_lazily():
    cache = DynamicCache()
    assert isinstance(cache_layer(cache, 3), DynamicLayer)
    assert len(cache.layers) == 4
    assert cache_layer(None, 3) is None


def test_kv_bytes_counts_keys_and_values_of_every_layer():
    cache = DynamicCache()
    states = torch.zeros(2, 3, 5, 7)
    cache.update(states, states, 0)
    cache_layer(cache, 1)
    assert kv_bytes(cache) == [2 * states.nbytes, 0]


class ExactLayer(QuantizedLayer):
    """A backend of quantization that loses nothing and notes how long what it stores is."""

    def __init__(self):
        super().__init__(residual_length=3)
        self.stored = []

    def _quantize(self, tensor, axis):
        self.stored.append(tensor.shape[2])
        return tensor.clone()

    def _dequantize(self, qtensor):
        return qtensor


def conversation(model, inputs, cache):
    """Logits of a prefill, five steps and a second turn."""
    logits = [model(**inputs, **{CACHE_NAME: cache}).logits]
    for tokens in ([[9]], [[8]], [[7]], [[31]], [[6]], [[9, 8, 7]], [[8]]):
        logits.append(model(input_ids=torch.tensor(tokens), **{CACHE_NAME: cache}).logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_quantized_layers_store_the_tokens_kept(name):
    trial = Trial(case(name, "sdpa"))
    model, inputs = trial.model, trial.case.rows[0]
    quantized = DynamicCache(config=model.config)
    quantized.layers = [ExactLayer() for _ in quantized.layers]
    with apply(model, trial.plans["attention"], check=False) as handle:
        dynamic = DynamicCache(config=model.config)
        wanted = conversation(model, inputs, dynamic)
        got = conversation(model, inputs, quantized)
        assert [layer.stored[0] for layer in quantized.layers] == list(handle.last.lengths)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    assert [n_physical(layer) for layer in quantized.layers] == [
        layer.keys.shape[2] for layer in dynamic.layers
    ]
    last = quantized.layers[-1]
    assert isinstance(last, PrunedQuantizedKV)
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    if "reorder_cache" not in vars(QuantizedLayer):
        skip_elsewhere("beams do not move what is quantized before 5.20")
    quantized = DynamicCache(config=model.config)
    quantized.layers = [ExactLayer() for _ in quantized.layers]
    with apply(model, trial.plans["attention"], check=False):
        found = model.generate(**inputs, **beams, past_key_values=quantized)
        assert torch.equal(found, model.generate(**inputs, **beams))
    with pytest.raises(UsageError, match="cannot be cropped; use a DynamicCache"):
        last.crop(-1)


def test_generate_quantizes_what_a_plan_keeps():
    model = tiny_llava()
    try:
        from transformers.cache_utils import Fp8QuantizedLayer  # the backend without a package
    except ImportError as error:
        skip_elsewhere(str(error))
        raise
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    steps = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    with apply(model, PLAN) as handle:
        out = model.generate(**batch(FIRST[:1]), **steps, **options)
        lengths = handle.last.lengths
    layers = getattr(out, CACHE_NAME).layers
    assert all(isinstance(layer, Fp8QuantizedLayer) for layer in layers)
    assert [layer._quantized_keys[0].shape[2] for layer in layers] == [n + 4 for n in lengths]


@pytest.fixture
def streams(monkeypatch):
    """What an offloaded cache asks of CUDA."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: stream)
    copying = nullcontext()
    copying.wait_stream = stream.wait_stream
    return copying


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_layers_that_wait_in_the_memory_of_the_cpu_are_pruned_too(name, streams):
    trial = Trial(case(name, "sdpa"))
    inputs = rows_alone(batch(FIRST))[1] if name == "llava" else trial.case.rows[0]
    offloaded = DynamicCache(config=trial.model.config)
    offloaded.offloading, offloaded.only_non_sliding = True, True
    offloaded.prefetch_stream = streams
    with apply(trial.model, trial.plans["attention"], check=False):
        dynamic = DynamicCache(config=trial.model.config)
        wanted = conversation(trial.model, inputs, dynamic)
        assert torch.equal(conversation(trial.model, inputs, offloaded), wanted)
    assert kv_bytes(offloaded) == kv_bytes(dynamic)
