"""Plans on a GPU: no wait of the host, every cache, compiled decoding, weights kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpu_cases
import pytest
import torch
from models import batch, prompt, tiny_llava
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel

from tpcal.plans.executor.compat import CACHE_NAME
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Condition, Cut, Plan
from tpcal.plans.selectors import min_layer, names

pytestmark = pytest.mark.gpu

PROMPTS = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
CONDITIONAL = Plan((Cut(3, 0.5, "grid"), Cut(6, 0.0, condition=Condition(0.9, 0.9))))
STEPS = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model(gpu: torch.device) -> PreTrainedModel:
    return tiny_llava().to(gpu)


@pytest.fixture(scope="module")
def inputs(gpu: torch.device) -> dict[str, Tensor]:
    return gpu_cases.moved(batch(PROMPTS), gpu)


def waits_of_a_prefill(
    model: PreTrainedModel, inputs: dict[str, Tensor], device: torch.device
) -> list[str]:
    model(**inputs, logits_to_keep=1)  # what is made once, as kernels are
    with gpu_cases.waits(device) as waits:
        model(**inputs, logits_to_keep=1)
    return waits


@pytest.mark.parametrize("scope", ["prompt", "image"])
@pytest.mark.parametrize("selector", names())
def test_a_prefill_waits_for_the_device_once(
    gpu: torch.device,
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    selector: str,
    scope: str,
) -> None:
    first = max(2, min_layer(selector))
    plan = Plan((Cut(first, 0.5, selector), Cut(4, 0.25, selector), Cut(6, 0.0)), scope=scope)
    unpruned = waits_of_a_prefill(model, inputs, gpu)
    with apply(model, plan):
        found = waits_of_a_prefill(model, inputs, gpu)
    # vispruner reads the sizes of several images at each of its two cuts.
    more = 2 * (selector == "vispruner" and scope == "prompt")
    assert len(found) <= len(unpruned) + 1 + more, (found, unpruned)


def test_a_decode_step_does_not_wait(gpu: torch.device, model: PreTrainedModel) -> None:
    alone = gpu_cases.moved(batch(PROMPTS[:1], mask=False), gpu)
    with apply(model, Plan((Cut(2, 0.5, "attention"),))):
        cache = getattr(model(**alone), CACHE_NAME)
        step = {"input_ids": alone["input_ids"][:, -1:], CACHE_NAME: cache}
        model(**step)
        with gpu_cases.waits(gpu) as waits:
            model(**step)
    assert not waits


@pytest.mark.parametrize("plan", [PLAN, CONDITIONAL], ids=["plain", "conditional"])
def test_tokens_and_choices_are_those_of_the_cpu(
    model: PreTrainedModel, inputs: dict[str, Tensor], plan: Plan
) -> None:
    found = []
    for one, given in ((tiny_llava(), batch(PROMPTS)), (model, inputs)):
        with apply(one, plan) as handle:
            tokens = one.generate(**given, **STEPS)
        found.append((tokens.tolist(), [cut.kept for cut in handle.last.cuts]))
    assert found[0] == found[1]


@pytest.fixture
def eager_compiler() -> Iterator[None]:
    """Room for the graphs of all layers, and none of them afterwards."""
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("eager_compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_decoding_in_a_static_cache_gives_the_tokens_of_a_dynamic_one(
    gpu: torch.device,
) -> None:
    model = tiny_llava(n_layers=3).to(gpu)
    alone = gpu_cases.moved(batch(PROMPTS[:1]), gpu)
    # On a GPU `generate` compiles with CUDA graphs by itself.
    compiled: dict[str, Any] = {}
    if gpu.type != "cuda":
        compiled["compile_config"] = CompileConfig(backend="eager", mode=None)
        compiled["compile_config"]._compile_all_devices = True
    static = {**STEPS, "cache_implementation": "static", **compiled}
    with apply(model, Plan((Cut(1, 0.5, "attention"), Cut(2, 0.0)))) as handle:
        wanted = model.generate(**alone, **STEPS)
        report = handle.last
        for _ in range(2):
            assert torch.equal(model.generate(**alone, **static), wanted)
            assert [cut.kept for cut in handle.last.cuts] == [cut.kept for cut in report.cuts]


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_caches_of_other_kinds_give_the_tokens_of_a_dynamic_one(
    gpu: torch.device, model: PreTrainedModel, inputs: dict[str, Tensor], kind: str
) -> None:
    options: dict[str, Any] = {"cache_implementation": kind, "disable_compile": True}
    if kind == "offloaded" and gpu.type != "cuda":
        options = {}  # its copies need a stream of CUDA
    with apply(model, PLAN):
        wanted = model.generate(**inputs, **STEPS)
        assert torch.equal(model.generate(**inputs, **STEPS, **options), wanted)


def test_a_quantized_cache_holds_what_the_plan_keeps(
    gpu: torch.device, model: PreTrainedModel
) -> None:
    layer: Any = pytest.importorskip("transformers.cache_utils")
    if not hasattr(layer, "Fp8QuantizedLayer"):
        pytest.skip("this release of transformers has no backend without a package")
    alone = gpu_cases.moved(batch(PROMPTS[:1]), gpu)
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with apply(model, PLAN) as handle:
        out = model.generate(**alone, **STEPS, **options, return_dict_in_generate=True)
        lengths = handle.last.lengths
    held = [one._quantized_keys[0].shape[2] for one in getattr(out, CACHE_NAME).layers]
    assert held == [n + STEPS["max_new_tokens"] - 1 for n in lengths]


def test_layers_whose_weights_wait_on_the_cpu_give_the_same_tokens(
    gpu: torch.device, model: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    accelerate = pytest.importorskip("accelerate")
    other, here = tiny_llava(), gpu.index or 0 if gpu.type == "cuda" else "cpu"
    parts = ("vision_tower", "multi_modal_projector", "language_model.embed_tokens")
    places: dict[str, Any] = {f"model.{part}": here for part in parts}
    places |= {f"model.language_model.{part}": here for part in ("norm", "rotary_emb")}
    places |= {f"model.language_model.layers.{at}": here if at < 5 else "cpu" for at in range(8)}
    other = accelerate.dispatch_model(other, {**places, "lm_head": here}, force_hooks=True)
    with apply(model, PLAN):
        wanted = model.generate(**inputs, **STEPS)
    with apply(other, PLAN):
        assert torch.equal(other.generate(**inputs, **STEPS), wanted)


def test_two_threads_get_the_tokens_of_their_own_requests(
    gpu: torch.device, model: PreTrainedModel
) -> None:
    requests = [gpu_cases.moved(batch([one], seed=i), gpu) for i, one in enumerate(PROMPTS * 2)]

    def answered(given: dict[str, Tensor]) -> list[int]:
        with torch.no_grad():
            return model.generate(**given, **STEPS).tolist()

    with apply(model, PLAN):
        wanted = [answered(request) for request in requests]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(answered, requests)) == wanted
