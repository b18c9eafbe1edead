"""What is timed: every token of real generation, memory, and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from releases import skip_elsewhere

from tpcal.calibrate.bench.generation_times import BenchSettings, Generator, bench
from tpcal.calibrate.bench.geometry import GEOMETRIES, build, check_memory, prompt, prompts
from tpcal.calibrate.bench.peak_memory import peak_bytes
from tpcal.calibrate.bench.prompt_sizes import PromptSize
from tpcal.calibrate.bench.synthetic_prompts import inputs_for
from tpcal.calibrate.inputs.models import Loaded
from tpcal.plans.cost import kv_bytes
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.executor.compat import require_encoded_images
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(2, 0.25, "attention"), Cut(5, 0.0)))
CPU = torch.device("cpu")


@pytest.fixture(params=["tiny", pytest.param("tiny-qwen", marks=pytest.mark.nightly)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    try:
        require_encoded_images()
    except UsageError as error:
        skip_elsewhere(str(error))
    return build(GEOMETRIES[name], torch.float32, "cpu")


def _ticks() -> Iterator[float]:
    """A clock that is a second on whenever it is looked at."""
    return map(float, count())


@pytest.mark.parametrize("plan", [None, PLAN], ids=["unpruned", "plan"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_token_is_stamped_once(
    name: str, model: Any, plan: Plan | None, batch_size: int
) -> None:
    """Looked at: before the call, around the decoder, at each of five tokens."""
    inputs = prompts(GEOMETRIES[name], PromptSize(batch_size, 1, 12), torch.float32, "cpu")
    ticks = _ticks()
    repeat = Generator(model, inputs, 5, lambda: next(ticks)).repeat(plan)
    assert next(ticks) == 8
    assert repeat.decoder_ms == 1000
    assert repeat.ttft_ms == 3000
    assert repeat.token_ms == 1000
    assert repeat.tokens_per_s == pytest.approx(batch_size * 5 / 7)
    assert not is_applied(model)


def test_the_cache_holds_what_the_formula_says(name: str, model: Any) -> None:
    geometry, n_new = GEOMETRIES[name], 4
    inputs = prompts(geometry, PromptSize(1, 2, 12), torch.float32, "cpu")
    shape, n_visual = decoder_shape(model), 2 * geometry.n_visual
    entering = PLAN.schedule(n_visual, shape.n_layers)
    generator = Generator(model, inputs, n_new)
    peak, held = generator.memory(PLAN)
    assert held == kv_bytes(shape, [n + 12 + n_new - 1 for n in entering])
    full_peak, full = generator.memory(None)
    assert full == kv_bytes(shape, [n_visual + 12 + n_new - 1] * shape.n_layers)
    assert peak is not None
    assert full_peak is not None
    assert full_peak > peak > held


def test_the_end_of_an_answer_shortens_no_run(loaded: Loaded) -> None:
    """The random model would end its answer whenever that token comes first."""
    ends = list(range(loaded.model.config.get_text_config().vocab_size))[1:]
    before = loaded.model.generation_config.eos_token_id
    loaded.model.generation_config.eos_token_id = ends
    try:
        inputs = inputs_for(loaded, PromptSize(2, 1, 30), 64)
        ticks = _ticks()
        Generator(loaded.model, inputs, 6, lambda: next(ticks)).repeat(None)
    finally:
        loaded.model.generation_config.eos_token_id = before
    assert next(ticks) == 3 + 6


def test_synthetic_prompts_are_as_long_as_asked_for_and_padded(loaded: Loaded) -> None:
    inputs = inputs_for(loaded, PromptSize(3, 2, 40), 64)
    visual = find(loaded.model).visual_mask(loaded.model, inputs["input_ids"], None).sum(1)
    text = inputs["attention_mask"].sum(1) - visual
    assert len(set(visual.tolist())) == 1
    assert 30 <= int(text[0]) <= 40
    assert text.tolist() == sorted(text.tolist(), reverse=True)
    assert int(text[2]) < int(text[0])
    assert not torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][1])


def test_rows_of_a_batch_go_down_to_half_the_text() -> None:
    assert PromptSize(4, 1, 60).text_lengths == (60, 50, 40, 30)
    assert PromptSize(1, 1, 60).text_lengths == (60,)


def test_cells_count_the_tokens_and_hold_every_repeat(name: str, model: Any) -> None:
    geometry, steps = GEOMETRIES[name], []
    cells = bench(
        model,
        lambda shape: prompts(geometry, shape, torch.float32, "cpu"),
        [PromptSize(1, 1, 12), PromptSize(2, 2, 12)],
        {"plan": PLAN, "none": Plan(())},
        BenchSettings(n_new=2, n_repeats=3),
        progress=lambda done, total, what: steps.append((done, total, what)),
    )
    assert [cell.title for cell in cells] == [
        "batch 1, 36 + 12 tokens",
        "batch 2, 72 + 6–12 tokens",
    ]
    for cell in cells:
        runs = (cell.unpruned, *cell.plans)
        assert [run.name for run in runs] == ["unpruned", "plan", "none"]
        assert {len(run.repeats) for run in runs} == {3}
        assert cell.plans[1].kv_bytes == cell.unpruned.kv_bytes > cell.plans[0].kv_bytes
    total = 2 * 3 * (3 + 2)
    assert [(done, of) for done, of, _ in steps] == [(i, total) for i in range(1, total + 1)]
    assert steps[-1][2] == "batch 2, 12 text tokens"


def test_peaks_count_what_is_held_at_a_time() -> None:
    def work() -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(2000), torch.empty(500)
        del second, third

    assert peak_bytes(CPU, work) == 4 * 2500


def test_a_prompt_of_one_row_has_no_mask(name: str, model: Any) -> None:
    inputs = prompt(GEOMETRIES[name], 12, torch.float32, "cpu")
    assert "attention_mask" not in inputs
    assert inputs["input_ids"].shape == (1, 36 + 12)


def test_weights_are_counted_before_they_are_made(name: str, model: Any) -> None:
    held = dict(model.named_parameters())
    names = [name for name in held if "language_model" in name or name.startswith("lm_head")]
    matrices = sum(held[name].numel() for name in names if held[name].ndim == 2)
    assert GEOMETRIES[name].n_parameters == matrices


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    vast = GEOMETRIES["llava-1.5-7b"].with_layers(10_000)
    with pytest.raises(RunFailed, match=r"must have \d+\.\d GiB on cpu .*--layers \d+ fits"):
        check_memory("vast", vast, torch.float32, CPU)
    check_memory("tiny", GEOMETRIES["tiny"], torch.float32, CPU)


def test_images_of_qwen_grow_with_their_pixels_and_those_of_llava_do_not() -> None:
    assert GEOMETRIES["qwen2.5-vl-7b"].for_images(336).n_visual == 144
    assert GEOMETRIES["llava-1.5-7b"].for_images(672).n_visual == 576
