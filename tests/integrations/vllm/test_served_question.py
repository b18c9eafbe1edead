"""Selectors that look at the question, beside the prefix cache, preemption and other requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import served
from served import BLOCK, DEVICE, PLANS, SMALL_POOL, Engine, Executor, until_end

from tpcal import Plan
from tpcal.calibrate.embedded import EmbeddedSample, samples
from tpcal.integrations.vllm import touchpoints

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

PLAN = PLANS["attention"]
TEXT = "Say which of these words is a colour: stone, red, seven, left. " * 5


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with served.engine(PLAN, tmp_path_factory.mktemp("plan"), **SMALL_POOL) as made:
        yield made


@pytest.fixture(autouse=True)
def _cold(engine: Engine) -> None:
    engine.llm.reset_prefix_cache()
    engine.kept.clear()


def test_preempted_and_long_answers_are_those_of_the_executor(
    engine: Engine, executor: Executor
) -> None:
    questions, n_long = samples("eval", 20, seed=1), 60
    wanted = executor.answers(PLAN, questions, n_long, min_new_tokens=n_long)
    before = engine.counter("num_preemptions"), engine.n_waited
    found = engine.answers(questions, n_long, min_tokens=n_long)
    assert engine.counter("num_preemptions") > before[0]
    assert engine.n_waited > before[1]
    assert found.tokens == wanted.tokens


def test_no_layer_runs_without_tokens(engine: Engine) -> None:
    seen: list[int] = []

    def note(layer: Any, args: Any, output: Any) -> None:
        seen.append(len(output[0]))

    layers = touchpoints.decoder_layers(engine.runner.model)
    hooks = [layer.register_forward_hook(note) for layer in layers]
    waited = engine.n_waited
    engine.answers(samples("eval", 1))  # longer than a step, and its question comes last
    for hook in hooks:
        hook.remove()
    assert engine.n_waited > waited
    assert seen
    assert 0 not in seen  # of which kernels for GPUs make an error


def test_questions_about_the_same_image_do_not_share_what_they_keep(engine: Engine) -> None:
    asked = _questions_about_same_images()
    texts = [(served.prompt(s.question, n_images=0, before=TEXT), []) for s in asked[:6]]
    cold, kept, cold_texts = [], [], []
    for question in asked:
        engine.llm.reset_prefix_cache()
        found = engine.answers([question], before=TEXT)
        cold, kept = cold + found.tokens, kept + found.kept
    for text in texts:
        engine.llm.reset_prefix_cache()
        cold_texts += engine.generate([text])
    hits = engine.counter("prefix_cache_hits")
    warm = [engine.answers([question], before=TEXT) for question in asked]
    assert [found.tokens[0] for found in warm] == cold
    assert [found.kept[0] for found in warm] == kept
    assert len({str(one) for one in kept}) > 3  # questions do decide what an image keeps
    assert engine.counter("prefix_cache_hits") == hits  # requests with images read no cache
    # Requests without images do, and find nothing that those with images left half filled.
    again = [*engine.generate(texts[:1]), *engine.generate(texts[1:])]
    n_prefix = len(engine.llm.get_tokenizer().encode(f"USER: {TEXT}"))
    shared = n_prefix // BLOCK * BLOCK * len(texts[1:])
    assert engine.counter("prefix_cache_hits") - hits == shared
    assert _tokens(again) == _tokens(cold_texts)


def test_cached_and_uncached_requests_run_together(engine: Engine) -> None:
    asked = _questions_about_same_images()
    full = {"extra_args": {"tpcal": "off"}}
    pruned = [engine.answers([question], before=TEXT).tokens[0] for question in asked]
    whole = [engine.answers([q], before=TEXT, **full).tokens[0] for q in asked]
    prompts = [(served.prompt(s.question, before=TEXT), [s.image]) for s in asked]
    given = [
        {"prompt": text, "multi_modal_data": {"image": images}}
        for text, images in prompts
        for _ in range(2)
    ]
    from vllm import SamplingParams

    greedy = {"temperature": 0, "max_tokens": served.N_TOKENS}
    params = [SamplingParams(**greedy), SamplingParams(**greedy, **full)] * len(asked)
    hits = engine.counter("prefix_cache_hits")
    found = _tokens(engine.llm.generate(given, params, use_tqdm=False))
    assert engine.counter("prefix_cache_hits") > hits  # those that are served unpruned
    assert found[0::2] == pruned
    assert found[1::2] == whole


def test_one_image_of_two_is_chosen_from_as_in_the_executor(
    engine: Engine, executor: Executor
) -> None:
    import torch

    import tpcal

    plan: Plan = replace(PLAN, scope="image")
    first, second = samples("eval", 2, seed=4)
    text, images = served.prompt(first.question, n_images=2), [first.image, second.image]
    engine.generate([(text, images)])
    (kept,) = engine.kept.values()
    inputs = executor.processor(images=images, text=text, return_tensors="pt").to(DEVICE)
    with tpcal.apply(executor.model, plan) as handle, torch.inference_mode():
        executor.model.generate(**inputs, do_sample=False, max_new_tokens=2)
        assert handle.last is not None
        assert kept == [cut.kept[0] for cut in handle.last.cuts]


def _questions_about_same_images() -> list[EmbeddedSample]:
    return [
        replace(image, question=other.question)
        for image in samples("eval", 3, seed=2)
        for other in samples("eval", 5, seed=3)
    ]


def _tokens(outputs: list) -> list[list[int]]:  # type: ignore[type-arg]
    return [until_end(list(output.outputs[0].token_ids)) for output in outputs]
