"""Every family that runs in vLLM gives the answers of tpcal's executor: tiny random models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import served
import served_families
import torch
from served_families import FAMILIES, N_TOKENS, VIDEOS, answers, asked, asked_of_videos

from tpcal import Cut, Plan
from tpcal.integrations.vllm import touchpoints
from tpcal.plans.engines import VLLM
from tpcal.plans.errors import FitError

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

CHUNKS = {"LlavaOnevisionForConditionalGeneration": 96}
"""Tokens of a step where vLLM makes no room to encode an image with fewer."""
ALONE = (
    "InternVLForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)


def _plan(architecture: str) -> Plan:
    first, second = Cut(3, 0.5, "diversity"), Cut(4, 0.2, "attention")
    if architecture in ALONE:  # no selector reads the question, so that images wait alone
        first, second = Cut(2, 0.5, "diversity"), Cut(4, 0.2, "random")
    if architecture == "Qwen3VLForConditionalGeneration":  # between the layers of DeepStack
        first, second = Cut(1, 0.5, "diversity"), Cut(2, 0.2, "attention")
    return Plan(cuts=(first, second, Cut(6, 0.0)))


def _saved(architecture: str, folder: Path) -> Path:
    """The folder of a tiny model."""
    model = folder / "model"
    model.mkdir()
    FAMILIES[architecture][0](model)
    return model


def test_every_architecture_that_is_said_to_run_is_tried() -> None:
    assert VLLM.architectures is not None
    assert set(VLLM.architectures) == set(FAMILIES)
    assert {name for name, one in VLLM.architectures.items() if one.videos} == set(VIDEOS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_answers_and_kept_tokens_are_those_of_the_executor(
    architecture: str, tmp_path: Path
) -> None:
    _, prompt = FAMILIES[architecture]
    model, plan, given = _saved(architecture, tmp_path), _plan(architecture), asked(prompt)
    wanted = answers(model, plan, given)
    chunk = CHUNKS.get(architecture, 64)
    options = {"max_num_batched_tokens": chunk, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        found = engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
        waited = engine.n_waited
    assert found.prompts == wanted.prompts
    assert found.kept == wanted.kept
    assert found.tokens == wanted.tokens
    assert waited > 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("selector", "chunk", "n_words"), [("attention", 64, 40), ("diversity", 17, 3)]
)
def test_nothing_is_left_of_an_image_whose_tokens_all_wait(
    selector: str, chunk: int, n_words: int, tmp_path: Path
) -> None:
    # Features of Qwen3-VL's tower that the decoder did not take would be added to other requests.
    model = _saved("Qwen3VLForConditionalGeneration", tmp_path)
    plan = Plan(cuts=(Cut(2, 0.5, selector),))
    words = [f"w{number}" for number in range(40)]
    _, picture = asked(served_families.QWEN)[4]
    before_words = served_families.QWEN.split("w{}", maxsplit=1)[0]
    with_image = [(before_words + " ".join(words[:n_words]), picture)]
    text = [(" ".join(words), [])]
    wanted = answers(model, plan, with_image)
    options = {"max_num_batched_tokens": chunk, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        engine.llm.reset_prefix_cache()
        before = engine.recorded(text, N_TOKENS, min_tokens=N_TOKENS)
        found = engine.recorded(with_image, N_TOKENS, min_tokens=N_TOKENS)
        held = engine.runner.model.deepstack_input_embeds
        assert not any(features.any() for features in held)
        engine.llm.reset_prefix_cache()
        after = engine.recorded(text, N_TOKENS, min_tokens=N_TOKENS)
    assert found.tokens == wanted.tokens
    assert after.tokens == before.tokens


@pytest.mark.timeout(900)
def test_layers_that_add_the_residual_themselves(tmp_path: Path) -> None:
    model, plan = tmp_path / "model", _plan("LlavaNextForConditionalGeneration")
    model.mkdir()
    served_families.llava_next(model, decoder="granite")
    given = asked(served_families.LLAVA)[:6]
    wanted = answers(model, plan, given)
    options = {"max_num_batched_tokens": 64, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        found = engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
    assert (found.prompts, found.kept) == (wanted.prompts, wanted.kept)
    assert found.tokens == wanted.tokens


def test_layers_that_take_other_arguments_are_named() -> None:
    class Layer(torch.nn.Module):
        def forward(self, hidden_states: Any, positions: Any, residual: Any) -> None:
            """As GPT-OSS has it."""

    decoder = SimpleNamespace(layers=[Layer()])
    model = SimpleNamespace(get_language_model=lambda: decoder)
    assert "Layer, which takes hidden_states, positions" in str(touchpoints.layer_problem(model))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", VIDEOS)
def test_answers_to_videos_are_those_of_the_executor(architecture: str, tmp_path: Path) -> None:
    how, model = VIDEOS[architecture], _saved(architecture, tmp_path)
    plan = replace(how.plan or _plan(architecture), scope="image")
    given = asked_of_videos(how)
    wanted = answers(model, plan, given)
    options = {"max_num_batched_tokens": 64, "limit_mm_per_prompt": {"image": 1, "video": 1}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        found = engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
        waited = engine.n_waited
    assert served_families.as_transformers(how, found.prompts) == wanted.prompts
    assert found.kept == wanted.kept
    assert found.tokens == wanted.tokens
    assert waited > 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "architecture", ["Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"]
)
def test_images_and_videos_run_together(architecture: str, tmp_path: Path) -> None:
    how, model = VIDEOS[architecture], _saved(architecture, tmp_path)
    plan = replace(_plan("Qwen2_5_VLForConditionalGeneration"), scope="image")
    given = served_families.asked_of_both(how)
    wanted = answers(model, plan, given)
    options = {"max_num_batched_tokens": 64, "limit_mm_per_prompt": {"image": 1, "video": 2}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        cold = engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
        hits = engine.counter("prefix_cache_hits")
        warm = engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
        hits = engine.counter("prefix_cache_hits") - hits
    kept = [cuts if any(cuts) else [] for cuts in wanted.kept]  # of texts alone nothing is noted
    for found in (cold, warm):
        assert found.prompts == wanted.prompts
        assert found.kept == kept
        assert found.tokens == wanted.tokens
    assert hits == served.BLOCK * len(given)  # the text before the first image or video


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "architecture", ["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
)
def test_a_video_after_which_positions_differ_is_served_unpruned(
    architecture: str, tmp_path: Path
) -> None:
    how, model = VIDEOS[architecture], _saved(architecture, tmp_path)
    plan, wide, long = _plan(architecture), (4, 112, 168), (16, 56, 84)
    given = asked_of_videos(replace(how, shapes=(wide, long), fps=how.fps and 8.0))
    found = []
    for one in (plan, None):
        with served.engine(one, tmp_path, model=model) as engine:
            found.append(engine.recorded(given, N_TOKENS, min_tokens=N_TOKENS))
    pruned, whole = found
    assert [bool(kept) for kept in pruned.kept] == [True, False] * 6
    assert pruned.tokens[1::2] == whole.tokens[1::2]
    assert pruned.tokens != whole.tokens


@pytest.mark.timeout(900)
def test_a_window_that_no_request_outgrows(tmp_path: Path) -> None:
    model, plan, given = tmp_path / "model", _plan("Mistral3"), asked(served_families.PIXTRAL)
    model.mkdir()
    served_families.mistral3(model, window=256)
    wanted = answers(model, plan, given)
    options = {"max_num_batched_tokens": 64, "max_model_len": 256}
    limit = {"image": 1, "video": 0}
    with served.engine(plan, tmp_path, model=model, limit_mm_per_prompt=limit, **options) as one:
        found = one.recorded(given, N_TOKENS, min_tokens=N_TOKENS)
    assert (found.prompts, found.kept) == (wanted.prompts, wanted.kept)
    assert found.tokens == wanted.tokens
    with pytest.raises(FitError, match="--max-model-len 256"):
        served.Engine(tmp_path / "plan.yaml", model, max_model_len=257)
