"""One engine, many kinds of requests: chunks, preemption, caching, several images, opting out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import served
import torch
from served import BLOCK, DEVICE, PLANS, SMALL_POOL, Engine, Executor, until_end

from tpcal import Plan
from tpcal.calibrate.embedded import EmbeddedSample, samples
from tpcal.integrations.vllm.image_tokens import ImageColumns, tokens_of
from tpcal.integrations.vllm.stages import Span, StagedPrompt
from tpcal.plans.selectors import create

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

PLAN = PLANS["three cuts"]
TEXT = "Say which of these words is a colour: stone, red, seven, left. "


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
    questions, n_long = samples("eval", 24, seed=1), 60
    wanted = executor.answers(PLAN, questions, n_long, min_new_tokens=n_long)
    texts = [(served.prompt(s.question, n_images=0), []) for s in questions[:6]]
    alone = [_tokens(engine.generate([text], n_long, min_tokens=n_long))[0] for text in texts]
    before = engine.counter("num_preemptions"), engine.n_waited
    prompts = [(served.prompt(s.question), [s.image]) for s in questions]
    found = _tokens(engine.generate([*prompts, *texts], n_long, min_tokens=n_long))
    assert engine.counter("num_preemptions") > before[0]
    assert engine.n_waited > before[1]
    assert found[len(prompts) :] == alone
    assert found[: len(prompts)] == wanted.tokens


def test_a_request_holds_the_blocks_of_what_its_stages_hold(engine: Engine) -> None:
    sample = samples("eval", 1)[0]
    core = engine.llm.llm_engine
    core.add_request("blocks", _given(sample), _params(max_tokens=40, min_tokens=40))
    for _ in range(6):
        core.step()
    request = next(iter(engine.scheduler.requests.values()))
    ids = engine.scheduler.kv_cache_manager.get_block_ids(request.request_id)
    managers = engine.scheduler.kv_cache_manager.coordinator.single_type_managers
    stages = [getattr(manager.kv_cache_spec, "stage", 0) for manager in managers]
    n_tokens = request.num_computed_tokens
    image = request.mm_features[0].mm_position
    prompt = StagedPrompt(PLAN, (Span(image.offset, image.length),))
    held = [prompt.n_held(stage, n_tokens) for stage in stages]
    assert sorted(stages) == [0, 1, 2, 3]
    assert held[stages.index(3)] == n_tokens - 144
    assert [len(group) for group in ids] == [-(-n // BLOCK) for n in held]
    core.abort_request(["blocks"])
    core.step()


def test_a_warm_prefix_cache_gives_the_answers_of_a_cold_one(engine: Engine) -> None:
    before = TEXT * 5
    images = samples("eval", 3, seed=2)
    asked = [
        replace(image, question=other.question)
        for image in images
        for other in samples("eval", 6, seed=3)
    ]
    cold = []
    for question in asked:
        engine.llm.reset_prefix_cache()
        cold += engine.answers([question], before=before).tokens
    hits = engine.counter("prefix_cache_hits")
    warm = [engine.answers([question], before=before).tokens[0] for question in asked]
    together = engine.answers(asked, before=before).tokens
    n_prefix = len(engine.llm.get_tokenizer().encode(f"USER: {before}"))
    assert n_prefix // BLOCK * BLOCK * len(asked) <= engine.counter("prefix_cache_hits") - hits
    assert warm == cold
    assert together == cold


def test_the_same_image_again_is_not_read_from_the_cache(engine: Engine) -> None:
    sample = samples("eval", 1)[0]
    first = engine.answers([sample])
    hits = engine.counter("prefix_cache_hits")
    again = engine.answers([sample])
    assert (again.tokens, again.kept) == (first.tokens, first.kept)
    assert engine.counter("prefix_cache_hits") == hits  # its image starts in the first block


def test_every_image_of_a_prompt_keeps_its_own_share(engine: Engine, executor: Executor) -> None:
    first, second = samples("eval", 2, seed=4)
    text = served.prompt(first.question, n_images=2)
    engine.generate([(text, [first.image, second.image])])
    (kept,) = engine.kept.values()
    pair = [first.image, second.image]
    inputs = executor.processor(images=pair, text=text, return_tensors="pt").to(DEVICE)
    with torch.inference_mode():
        states = executor.model(**inputs, output_hidden_states=True).hidden_states[2][0]
    places = (inputs["input_ids"][0] == executor.model.config.image_token_id).nonzero()[:, 0]
    assert len(places) == 288
    for number, start in enumerate((int(places[0]), int(places[144]))):
        ranks = np.arange(144)
        image = ImageColumns(start + ranks, ranks, 144, 72)
        tokens, _ = tokens_of([image], 2, states)
        chosen = create("diversity").select(tokens, torch.tensor([72], device=DEVICE))[0]
        own = tuple(rank - 144 * number for rank in kept[0] if rank // 144 == number)
        assert own == tuple(chosen.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    "asked", [{"extra_args": {"tpcal": "off"}}, {"prompt_logprobs": 1}], ids=["off", "logprobs"]
)
def test_a_request_can_be_served_unpruned_beside_others(
    asked: dict[str, Any], engine: Engine, executor: Executor
) -> None:
    questions = samples("eval", 6, seed=5)
    full = executor.answers(Plan(), questions).tokens
    pruned = executor.answers(PLAN, questions).tokens
    given = [_given(sample) for sample in (*questions, *questions)]
    params = [_params(**asked)] * 6 + [_params()] * 6
    found = _tokens(engine.llm.generate(given, params, use_tqdm=False))
    assert found[:6] == full
    assert found[6:] == pruned
    assert len(engine.kept) == 6


def test_a_prompt_that_ends_with_an_image_is_served_unpruned(
    engine: Engine, executor: Executor
) -> None:
    sample = samples("eval", 1, seed=5)[0]
    text = f"USER: {sample.question}<image>"
    (found,) = _tokens(engine.generate([(text, [sample.image])]))
    inputs = executor.processor(images=[sample.image], text=[text], return_tensors="pt").to(DEVICE)
    output = executor.model.generate(**inputs, do_sample=False, max_new_tokens=served.N_TOKENS)
    assert found == until_end(output[0, inputs["input_ids"].shape[1] :].tolist())
    assert not engine.kept


def test_several_answers_to_a_prompt_are_those_of_one(engine: Engine) -> None:
    sample = samples("eval", 1, seed=6)[0]
    (one,) = _tokens(engine.generate([(served.prompt(sample.question), [sample.image])]))
    drawn = {"n": 3, "temperature": 1.0, "top_k": 1}  # vLLM gives one answer only if it is greedy
    (output,) = engine.generate([(served.prompt(sample.question), [sample.image])], **drawn)
    assert [until_end(list(found.token_ids)) for found in output.outputs] == [one] * 3


def test_an_aborted_request_leaves_nothing_behind(engine: Engine) -> None:
    sample = samples("eval", 1, seed=7)[0]
    three = (served.prompt(sample.question, n_images=3), [sample.image] * 3)
    core = engine.llm.llm_engine
    given = {"prompt": three[0], "multi_modal_data": {"image": three[1]}}
    core.add_request("aborted", given, _params())
    core.step()  # 120 tokens, which are less than the first image
    waiting = engine.runner.tpcal_forward._waiting
    assert waiting
    core.abort_request(["aborted"])
    assert engine.answers([sample]).tokens
    assert not waiting


def test_filler_of_a_cuda_graph_changes_no_answer(
    engine: Engine, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor

    questions = samples("eval", 6, seed=10)
    texts = [(served.prompt(s.question, n_images=0), []) for s in questions]
    alone = _tokens(engine.generate(texts))
    lengths: set[int] = set()

    def padded(num_tokens: int, **how: Any) -> tuple[Any, Any]:
        lengths.add(num_tokens)
        return CUDAGraphMode.NONE, BatchDescriptor(-(-num_tokens // 8) * 8)

    monkeypatch.setattr(engine.runner.cudagraph_dispatcher, "dispatch", padded)
    prompts = [(served.prompt(s.question), [s.image]) for s in questions]
    found = _tokens(engine.generate([*prompts, *texts]))
    assert any(n % 8 for n in lengths)
    assert found == [*executor.answers(PLAN, questions).tokens, *alone]


def _given(sample: EmbeddedSample) -> dict[str, Any]:
    return {
        "prompt": served.prompt(sample.question),
        "multi_modal_data": {"image": sample.image},
    }


def _params(**how: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0, "max_tokens": served.N_TOKENS, **how})


def _tokens(outputs: list[Any]) -> list[list[int]]:
    return [until_end(list(output.outputs[0].token_ids)) for output in outputs]
