"""What of a plan runs in vLLM, asked without vLLM."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from models import tiny_llava

import tpcal
from tpcal import Cut, Plan
from tpcal.integrations.vllm import configuration, support
from tpcal.plans import selectors
from tpcal.plans.cost import DecoderShape, plan_cost
from tpcal.plans.engines import FRAMES, VLLM, kv_share, n_block_tables, stage_lengths
from tpcal.plans.plan_records import Condition

SHAPE = DecoderShape(
    n_layers=8, hidden=64, ffn=128, n_heads=4, n_kv_heads=2, head_dim=16, vocab=97, dtype_bytes=2
)


def _plan(selector: str, **more: object) -> Plan:
    return Plan(cuts=(Cut(layer=2, keep=0.5, selector=selector, **more),))  # type: ignore[arg-type]


def test_selectors_run_that_do_not_read_the_vision_tower() -> None:
    refused = [name for name in selectors.names() if VLLM.plan_problems(_plan(name))]
    assert refused == ["visionzip", "vispruner"]
    for name in refused:
        (problem,) = VLLM.plan_problems(_plan(name))
        assert re.match(rf"cuts\[0\].selector: {name} needs the vision .*Use diversity", problem)


def test_some_selectors_look_at_the_question() -> None:
    reading = [name for name in selectors.names() if support.reads_question(_plan(name))]
    assert reading == ["attention", "balanced", "cdpruner", "dart", "sparsevlm"]
    assert not support.reads_question(_plan("balanced", params={"attention_share": 0.0}))
    assert support.reads_question(_plan("coverage", params={"attention_power": 1.0}))


def test_conditions_are_refused() -> None:
    (problem,) = VLLM.plan_problems(_plan("random", condition=Condition(0.1)))
    assert problem.startswith("cuts[0].condition: vLLM gives out memory before")


def test_architectures_that_no_test_runs_are_refused() -> None:
    (problem,) = VLLM.plan_problems(_plan("grid"), "Gemma3ForConditionalGeneration")
    assert "untried=true" in problem
    (problem,) = VLLM.plan_problems(_plan("grid"), "Qwen2_5_VLForConditionalGeneration")
    assert "needs square images" in problem
    assert VLLM.plan_problems(_plan("grid"), "LlavaForConditionalGeneration") == []
    (problem,) = VLLM.plan_problems(_plan("dart"), "InternVLForConditionalGeneration")
    assert "dart needs images in one piece; InternVLForConditionalGeneration may cut" in problem
    assert VLLM.plan_problems(_plan("dart"), "Qwen2_5_VLForConditionalGeneration") == []
    (problem,) = VLLM.plan_problems(_plan("grid"), "Gemma3ForConditionalGeneration", untried=True)
    assert "needs square images" in problem  # what is untried may run, what is wrong may not


def test_the_documentation_names_the_architectures_that_run() -> None:
    page = (Path(tpcal.__file__).parent / "docs" / "vllm.md").read_text()
    said = [row for row in page.splitlines() if "| runs" in row and "ForConditional" in row]
    assert {row.split("`")[1] for row in said} == set(VLLM.architectures or ())


@pytest.mark.parametrize(
    ("limits", "n_problems"),
    [((), 0), ((4, None, None, None), 0), ((None, None, None, 4), 1), ((None, 0, None, None), 1)],
)
def test_windows_after_a_cut_and_shared_caches_are_refused(
    limits: tuple[int | None, ...], n_problems: int
) -> None:
    shape = replace(SHAPE, kv_limits=limits)
    assert len(VLLM.decoder_problems(shape, _plan("grid"))) == n_problems


@pytest.mark.parametrize(
    ("lengths", "n_tables"),
    [([2, 2, 2, 2], 4), ([0, 8], 1), ([3, 4], 2), ([2, 14, 16], 16), ([16, 16], 2), ([3, 5], 3)],
)
def test_block_tables_are_counted_as_vllm_makes_them(lengths: list[int], n_tables: int) -> None:
    assert n_block_tables(lengths) == n_tables


def test_stages_cover_the_decoder() -> None:
    plan = Plan(cuts=(Cut(0, 0.5, "grid"), Cut(3, 0.2, "grid"), Cut(6, 0.0)))
    assert stage_lengths(plan, 8) == [0, 3, 3, 2]


def test_the_share_of_kv_bytes_is_that_of_the_cost() -> None:
    plan = tpcal.load_preset("divprune", n_layers=8)
    cost = plan_cost(plan, SHAPE, 144, 10)
    share = kv_share(plan, 8, 144, 10)
    assert share == pytest.approx(cost.kv_bytes / cost.unpruned_kv_bytes)


def test_the_log_line_says_what_the_plan_does() -> None:
    plan = Plan(name="half", cuts=(Cut(2, 0.5, "diversity"), Cut(6, 0.0)))
    line = support.summary(plan, 8, 144, 10)
    assert line.startswith(f"Plan half ({plan.digest[:19]}) cuts [2:0.5 diversity, 6:0 drop all].")
    assert "Of an image of 144 tokens 72, 0 are left." in line
    assert "takes 53% of the unpruned KV bytes, in 4 block tables" in line
    assert "video is cut" not in line
    videos = support.summary(plan, 8, 144, 10, FRAMES)
    assert "72, 0 are left. Each frame of a video is cut as an image is. A prompt of" in videos
    assert line.endswith("Prefix caching ends at a request's first image or video.")
    asking = support.summary(_plan("attention"), 8, 144, 10)
    assert asking.endswith("no prefix cache, because selectors read their question.")


def test_a_scope_that_vllm_does_not_follow_is_named() -> None:
    plan = _plan("diversity")
    assert support.notes(replace(plan, scope="image"), 4) == []
    (note,) = support.notes(replace(plan, scope="prompt"), 4)
    assert note.startswith("The plan's scope is prompt, and in vLLM every image keeps its own")


def test_a_selector_that_leaves_videos_alone_is_named() -> None:
    (note,) = support.notes(replace(_plan("dart"), scope="image"), 4)
    assert note.startswith("Requests with a video are served unpruned, because dart treats the")


@pytest.mark.parametrize(
    ("widths", "n_tokens"),
    [
        ({}, 32 * 32),
        ({"spatial_merge_size": 2}, 16 * 16),
        ({"scale_factor": 4}, 8 * 8),
        ({"downsample_ratio": 0.5}, 16 * 16),
    ],
)
def test_patches_are_merged_into_the_tokens_that_are_counted(
    widths: dict[str, float], n_tokens: int
) -> None:
    vision = SimpleNamespace(image_size=512, patch_size=16)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, **widths))
    assert configuration.counted_prompt(_plan("grid"), model)[0] == n_tokens


def test_siglip_has_no_class_token() -> None:
    model = tiny_llava()
    model.config.vision_config.model_type = "siglip_vision_model"
    (problem,) = configuration.model_problems(_plan("grid"), model, untried=False)
    assert problem.endswith("grid needs square images; these lack their first patch.")
    model.config.vision_feature_select_strategy = "full"
    assert configuration.model_problems(_plan("grid"), model, untried=False) == []


def test_a_class_token_makes_no_square() -> None:
    model = tiny_llava()
    assert configuration.model_problems(_plan("grid"), model, untried=False) == []
    model.config.vision_feature_select_strategy = "full"
    (problem,) = configuration.model_problems(_plan("grid"), model, untried=False)
    assert problem.endswith("grid needs square images; these have a class token.")
    assert configuration.model_problems(_plan("diversity"), model, untried=False) == []
    model.config.vision_config.model_type = "pixtral"
    (problem,) = configuration.model_problems(_plan("grid"), model, untried=False)
    assert problem.endswith("Pixtral takes images of any shape. Use diversity or random.")
