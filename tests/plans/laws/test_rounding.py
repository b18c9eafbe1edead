"""What rounding may change: measured on the model, above what it does, far below what matters."""

from __future__ import annotations

import copy
from dataclasses import replace

import flash
import pytest
import tiny
import torch
from capabilities import capabilities
from models import batch, prompt, tiny_llava
from reference import close

from tpcal.plans.families import find
from tpcal.plans.laws import LAWS
from tpcal.plans.laws.identity import snapshot
from tpcal.plans.laws.rounding import allowed, distance, is_coarse, nudging
from tpcal.plans.laws.trial import Trial

NAMES = ["llava", "qwen2_vl", "gemma3"]
LAW = {law.name: law for law in LAWS}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def prefill(trial):
    """[n, V] logits at the text of the prompts."""
    return trial.at_text(trial.left, trial.forward(trial.left, n_steps=0).logits)


def reordered(model):
    """The same function, whose feed-forwards add in another order, as on another processor."""
    other = copy.deepcopy(model)
    for seed, layer in enumerate(find(other).layers(other)):
        mlp = layer.mlp
        width = mlp.down_proj.in_features
        order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.data = linear.weight.data[order]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    return other


def in_precision(case, dtype):
    """The case with model and pictures of another precision."""
    rows = [
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in r.items()} for r in case.rows
    ]
    return replace(case, model=copy.deepcopy(case.model).to(dtype), rows=tuple(rows))


@pytest.mark.parametrize("name", NAMES)
def test_sums_in_another_order_stay_within_it(name):
    trial = Trial(tiny.case(name, "sdpa"))
    other = Trial(replace(trial.case, model=reordered(trial.model)))
    different = distance(prefill(trial), prefill(other))
    assert 0 < different <= trial.allowed


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_it_is_as_large_as_the_error_that_float64_shows(name):
    trial = Trial(tiny.case(name, "sdpa"))
    truth = prefill(Trial(in_precision(trial.case, torch.float64)))
    error = distance(prefill(trial), truth)
    assert error <= trial.allowed <= 30 * error


@pytest.mark.parametrize("name", NAMES)
def test_plans_change_a_thousand_times_more(name):
    trial = Trial(tiny.case(name, "sdpa"))
    assert trial.is_exact
    for plan in trial.plans:
        effect = distance(trial.pruned(plan, "left").logits, trial.unpruned("left").logits)
        assert effect > 1000 * trial.allowed


def test_a_model_whose_rows_depend_on_their_padding_is_allowed_no_more():
    trial = Trial(tiny.case("llama4_tempered", "sdpa"))
    assert trial.unpruned_noise("left") > 1000 * trial.allowed


def test_half_precision_is_allowed_its_own_steps():
    exact = Trial(tiny.case("llava", "sdpa"))
    half = Trial(in_precision(exact.case, torch.bfloat16))
    # At least a step of the largest logit, whatever order of sums a processor takes.
    logits = half.at_text(half.left, half.forward(half.left, n_steps=0).logits)
    assert half.allowed >= torch.finfo(torch.bfloat16).eps * float(logits.abs().max())
    assert half.allowed > 100 * exact.allowed
    assert half.unpruned_noise("left") <= half.allowed
    assert not half.is_exact


def test_the_kernel_that_stands_in_for_a_flash_kernel_rounds_at_other_places():
    case = in_precision(tiny.case("llava", flash.NAME), torch.float16)
    trial = Trial(replace(case, rows=case.rows[:3]))
    assert trial.allowed > 4 * trial.unpruned_noise("left")
    verdict = LAW["reference"].judge(trial)
    assert verdict.holds, verdict.detail


def test_float32_is_exact_on_a_gpu_that_does_not_multiply_it_as_tf32(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not is_coarse(gpu)
    torch.set_float32_matmul_precision("high")
    assert is_coarse(gpu)
    torch.set_float32_matmul_precision("highest")
    assert not is_coarse(gpu)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert is_coarse(gpu)
    assert is_coarse(torch.device("mps"))
    assert not is_coarse(torch.device("cpu"))


def test_rounding_as_large_as_the_logits_shows_nothing():
    trial = Trial(tiny.case("llava", "sdpa"))
    vars(trial)["_rounding"] = 1.0
    verdict = LAW["reference"].judge(trial)
    assert verdict.holds is None
    assert verdict.detail.startswith("rounding alone may move logits by 1.0e+00")
    assert not trial.is_exact


def test_a_choice_that_turns_in_one_of_three_runs_does_not_count():
    model, inputs = tiny_llava(), batch([prompt(3, 0, 4)])
    calls = []

    def run():
        calls.append(None)
        return model(**inputs).logits + (len(calls) == 2)

    assert 0 < allowed(model, run) < 1e-2
    assert len(calls) == 4


def test_a_nudged_model_is_afterwards_as_before():
    model, inputs = tiny_llava(), batch([prompt(3, 0, 4)])
    before, modules, state = model(**inputs).logits, snapshot(model), torch.random.get_rng_state()
    with nudging(model, 0):
        nudged = model(**inputs).logits
    assert torch.equal(torch.random.get_rng_state(), state)
    assert snapshot(model) == modules
    assert torch.equal(model(**inputs).logits, before)
    assert 0 < distance(nudged, before) <= close(model, inputs)


@pytest.mark.parametrize(
    ("widest", "known"),
    [
        ("DEFAULT", ["default"]),
        ("AVX2", ["default", "avx2"]),
        ("AVX512", ["default", "avx2", "avx512"]),
        ("SVE256", ["default", "sve256"]),
    ],
)
def test_every_instruction_set_up_to_the_widest_is_tried(widest, known):
    assert capabilities(widest) == known
