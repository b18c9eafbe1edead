"""The laws on a loaded model: its case from its own processor, and the command that prints them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import ImageChops

from tpcal.calibrate import executor_laws
from tpcal.calibrate.inputs.models import Loaded
from tpcal.cli import cli
from tpcal.plans.executor import cache
from tpcal.plans.families import find
from tpcal.plans.laws import LAWS
from tpcal.plans.plan_file import save_plan
from tpcal.plans.plan_records import Cut, Plan

_PLAN = Plan((Cut(1, 0.5, "grid"), Cut(3, 0.0)))


@pytest.fixture
def tpcal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(cli, [str(a) for a in args], prog_name="tpcal")


def test_the_prompts_differ_in_length_and_in_pictures(loaded: Loaded) -> None:
    case = executor_laws.case(loaded)
    visual = find(loaded.model).visual_mask
    counts = [int(visual(loaded.model, row["input_ids"], None).sum()) for row in case.rows]
    assert counts == [16, 32, 0, 16]
    assert len({row["input_ids"].shape[1] for row in case.rows}) == 4
    assert all(row["attention_mask"].all() for row in case.rows)
    assert case.per_row == frozenset()  # pixels belong to pictures here


def test_pictures_are_the_same_every_time_and_not_alike() -> None:
    one, again, other = (executor_laws._picture((40, 30), seed) for seed in (0, 0, 1))
    assert one.size == (40, 30)
    assert ImageChops.difference(one, again).getbbox() is None
    assert ImageChops.difference(one, other).getbbox() == (0, 0, 40, 30)


def test_inputs_of_a_whole_prompt_are_told_from_those_of_an_image() -> None:
    row = {
        "input_ids": torch.ones(1, 5),
        "attention_mask": torch.ones(1, 5),
        "pixel_values": torch.ones(1, 2, 3, 8, 8),
        "image_sizes": torch.ones(2, 2),
    }
    assert executor_laws._per_row(row, n_images=2) == {"pixel_values"}


def test_token_types_are_zeros_where_the_processor_gives_none() -> None:
    with_types = {"input_ids": torch.ones(1, 3).long(), "token_type_ids": torch.ones(1, 3).long()}
    rows = executor_laws._typed([with_types, {"input_ids": torch.ones(1, 2).long()}])
    assert rows[0]["token_type_ids"].tolist() == [[1, 1, 1]]
    assert rows[1]["token_type_ids"].tolist() == [[0, 0]]


class Strict:
    """A processor that wants an image in every prompt, as PaliGemma's does."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, images: Any = None, **kwargs: Any) -> Any:
        if images is None:
            raise ValueError("images are expected")
        return self._processor(images=images, **kwargs)


def test_words_go_to_the_tokenizer_where_the_processor_wants_images(loaded: Loaded) -> None:
    strict: Any = Strict(loaded.processor)
    case = executor_laws.case(replace(loaded, processor=strict))
    assert [set(row) for row in case.rows].count({"input_ids", "attention_mask"}) == 1
    assert "pixel_values" in case.rows[0]
    assert set(case.rows[2]) == {"input_ids", "attention_mask"}


def test_progress_names_every_law(loaded: Loaded) -> None:
    seen: list[tuple[int, int, str]] = []
    verdicts = executor_laws.judge(loaded, laws=LAWS[:2], progress=lambda *step: seen.append(step))
    assert seen == [(0, 2, "Trying: keep all"), (1, 2, "Trying: text only")]
    assert [verdict.holds for verdict in verdicts] == [True, True]


def test_check_prints_all_laws_of_a_model_with_a_plan(tpcal, model_folder: Path) -> None:
    save_plan(_PLAN, "plan.yaml")
    result = tpcal("check", "plan.yaml", "--deep", "--model", model_folder, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(any(line.startswith(f"{law.name}  ") for line in lines) for law in LAWS)
    assert f"{len(LAWS)} of {len(LAWS)} laws hold." in lines
    assert "float32 on cpu" in lines[0]
    assert any("4 plans" in line for line in lines)  # the suite's and ours
    assert max(map(len, lines)) <= 80


def test_a_broken_law_ends_with_5(tpcal, model_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache.PrunedKV, "crop", lambda self, n: None)
    result = tpcal("check", "--deep", "--model", model_folder, "--device", "cpu")
    assert result.exit_code == 5
    assert f"{len(LAWS) - 2} of {len(LAWS)} laws hold." in result.stdout
    crop, drafts = (line for line in result.stderr.splitlines() if "error" in line)
    assert "A cropped cache continues as if the last tokens had never been there. Broken: " in crop
    assert "Prompt lookup" in drafts


def test_no_law_is_judged_while_plans_are_off(tpcal, model_folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("TPCAL_OFF", "1")
    result = tpcal("check", "--deep", "--model", model_folder, "--device", "cpu")
    assert result.exit_code == 2
    assert "TPCAL_OFF must not be set while plans are measured" in result.stderr


@pytest.mark.parametrize("options", [(), ("--deep", "--engine", "vllm")])
def test_check_needs_a_plan_or_deep(tpcal, options) -> None:
    result = tpcal("check", *options)
    assert result.exit_code == 2
    assert "Missing argument 'PLAN'; it can be left out only with --deep." in result.stderr
