"""Plans beside the real kernels of flash and flex attention on a GPU."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import flash
import gpu_cases
import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.executor.handle import apply
from tpcal.plans.laws import LAWS
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.gpu

LAW = {law.name: law for law in LAWS}
TRIED = (
    *("reference", "rows alone", "kv cache", "positions", "same choice", "recompute"),
    *("text turn", "image turn", "crop", "threads"),
)
ARCHITECTURES = ("llava", "qwen2_5_vl", "qwen3_vl")
DTYPES = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)  # the laws of a case follow each other
def trial(name: str, device: torch.device) -> Trial:
    return Trial(gpu_cases.case(name, flash.NAME, device, torch.float16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(-1, -1), (5, 0)])
@pytest.mark.parametrize("n_queries", [1, 4, 37])
def test_flash_attention_is_what_its_reference_says(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    n_queries: int,
    window: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, n, heads, 20, generator=g).to(gpu, dtype)
        for n, heads in ((n_queries, 4), (37, 2), (37, 2))
    )
    found = flash.flash_attn_func(q, k, v, causal=True, window_size=window)
    lengths_q, lengths_k = (n_queries, 1, min(2, n_queries)), (37, 5, 11)
    ends = [
        torch.tensor([0, *accumulate(ns)], dtype=torch.int32, device=gpu)
        for ns in (lengths_q, lengths_k)
    ]
    packed = [
        torch.cat([part[row, -n:] for row, n in enumerate(ns)])
        for part, ns in ((q, lengths_q), (k, lengths_k), (v, lengths_k))
    ]
    several = flash.flash_attn_varlen_func(
        *packed, *ends, n_queries, 37, causal=True, window_size=window
    )
    assert flash.has_kernel(q) == (gpu.type == "cuda")
    monkeypatch.setattr(flash, "has_kernel", lambda q: False)
    wanted = flash.flash_attn_func(q, k, v, causal=True, window_size=window)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    wanted = flash.flash_attn_varlen_func(
        *packed, *ends, n_queries, 37, causal=True, window_size=window
    )
    torch.testing.assert_close(several, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("name", "law"), [(n, law) for n in ARCHITECTURES for law in TRIED])
def test_the_law_holds_with_flash_attention(gpu: torch.device, name: str, law: str) -> None:
    verdict = LAW[law].judge(trial(name, gpu))
    if verdict.holds is None and law not in ("reference", "rows alone"):
        pytest.skip(verdict.detail)  # the unpruned model itself rounds too coarsely
    assert verdict.holds, verdict.detail


@pytest.mark.parametrize("rows", ["left", "right", "0"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_under_a_plan_are_those_of_the_reference_kernel(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, rows: str
) -> None:
    on_kernel = trial(name, gpu)
    found = {plan: on_kernel.pruned(plan, rows) for plan in on_kernel.plans}
    monkeypatch.setattr(flash, "has_kernel", lambda q: False)
    plain = Trial(on_kernel.case)
    for plan in ("content", "early"):
        inputs = on_kernel.inputs(rows)
        wanted = plain.pruned(plan, rows)
        logits = [on_kernel.at_text(inputs, run.logits) for run in (found[plan], wanted)]
        assert found[plan].kept == wanted.kept
        on_kernel.require_close(distance(*logits), f"plan {plan}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch and transformers
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_compiled_flex_attention_gives_the_tokens_of_sdpa(gpu: torch.device) -> None:
    model = tiny_llava().to(gpu)
    plan = Plan((Cut(2, 0.5, "attention"), Cut(5, 0.25, "attention")))
    inputs = gpu_cases.moved(batch([prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1)]), gpu)
    options = {"max_new_tokens": 3, "do_sample": False}
    stance = "default" if gpu.type == "cuda" else "force_eager"  # the C++ compiler takes minutes
    with apply(model, plan) as handle, torch.compiler.set_stance(stance):
        wanted = model.generate(**inputs, **options)
        logits, kept = model(**inputs).logits, [cut.kept for cut in handle.last.cuts]
        model.set_attn_implementation({"text_config": "flex_attention"})
        found = model(**inputs).logits
        assert [cut.kept for cut in handle.last.cuts] == kept
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[real], logits[real], rtol=0, atol=2e-3)
        assert model.generate(**inputs, **options).tolist() == wanted.tolist()
    torch.compiler.reset()
