"""The trainer: packing equals the ordinary forward, runs resume, exports load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tools.embedded import train
from tools.embedded.data import NO_GROUP, SceneCache, encode, start_ids
from tools.embedded.labels import LABELS, patch_labels
from tools.embedded.model import Sizes, new_model, new_processor
from tools.embedded.muon import orthogonalise
from tools.embedded.packing import packed_logits, visual_tokens
from tpcal.calibrate.embedded.layout import SHAPES
from tpcal.calibrate.embedded.questions import GROUPS
from tpcal.calibrate.embedded.scenes import plan_scene, scene
from tpcal.plans.laws.rounding import allowed, distance

TINY = Sizes(patch=16, tower_width=16, tower_layers=1, tower_ffn=16, width=16, layers=3, ffn=16)
OPTIONS = (
    *("--seed", "3", "--scenes", "12", "--easy-scenes", "8", "--held-out", "4"),
    *("--tower-steps", "4", "--tower-images", "3", "--steps", "6", "--images", "3"),
    *("--save-every", "2", "--evaluate-every", "100"),
    *(x for k, v in vars(TINY).items() for x in (f"--{k.replace('_', '-')}", str(v))),
)


def test_packed_logits_equal_those_of_the_ordinary_forward() -> None:
    model, processor = new_model(TINY, 1).eval(), new_processor(TINY)
    asked = scene(5)
    tokens = torch.from_numpy(encode(asked.questions, processor.tokenizer)[0].astype(np.int64))
    tokens = tokens[: len(asked.questions)]
    pixels = processor.image_processor(asked.image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        packed = packed_logits(model, visual_tokens(model, pixels), start_ids(), tokens[None])[0]
        for q, row in zip(asked.questions, packed, strict=True):
            turns = [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": q.question}],
                },
                {"role": "assistant", "content": q.answer},
            ]
            text = processor.apply_chat_template(turns)
            inputs = processor(images=asked.image, text=text, return_tensors="pt")
            wanted = model(**inputs).logits[0, 2 + TINY.grid**2 :]
            most = allowed(model, lambda given=inputs: model(**given).logits)
            assert distance(row[: len(wanted)], wanted) <= most


@pytest.mark.nightly
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (
        ["--out", str(tmp_path / name), "--weights", str(tmp_path / name / "w"), *OPTIONS]
        for name in ("whole", "broken")
    )
    train.main(["all", *whole])
    real_step = train._step

    def dies(stage: Any, step: int) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return real_step(stage, step)

    for stage in ("tower", "language"):
        with monkeypatch.context() as patch:
            patch.setattr(train, "_step", dies)
            with pytest.raises(KeyboardInterrupt):
                train.main([stage, *broken])
        train.main([stage, *broken])
    train.main(["export", *broken])
    one = load_file(tmp_path / "whole" / "w" / "model.safetensors")
    other = load_file(tmp_path / "broken" / "w" / "model.safetensors")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.nightly
def test_the_export_holds_what_was_trained(tmp_path: Path) -> None:
    train.main(["all", "--out", str(tmp_path), "--weights", str(tmp_path / "w"), *OPTIONS])
    state = torch.load(tmp_path / "language.pt", weights_only=True)
    assert state["step"] == 6
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "w", output_loading_info=True
    )
    assert not any(info.values())
    trained = state["module"]["model.lm_head.weight"].bfloat16()
    assert torch.equal(model.lm_head.weight, trained)
    assert AutoProcessor.from_pretrained(tmp_path / "w").chat_template


def test_a_batch_depends_on_step_and_seed_alone(tmp_path: Path) -> None:
    cache = SceneCache(tmp_path / "s", 6, start=0, easy=False, patch=16)
    one = cache.take(np.arange(6), 20, np.random.default_rng(1))
    other = cache.take(np.arange(6), 20, np.random.default_rng(1))
    assert torch.equal(one.tokens, other.tokens)
    for number, groups in enumerate(one.groups.tolist()):
        asked = sorted(GROUPS.index(q.group) for q in plan_scene(number)[1])
        assert sorted(g for g in groups if g != NO_GROUP) == asked


def test_labels_name_the_thing_at_its_centre() -> None:
    for number in range(20):
        layout = plan_scene(number)[0]
        labels = patch_labels(layout, 8)
        for thing in layout.shapes:
            kind, _, size, _, row, column, centre, _, _ = labels[
                int(thing.y) // 8 * 12 + int(thing.x) // 8
            ]
            assert (kind, size) == (1 + SHAPES.index(thing.shape), 1 + thing.large)
            assert (row, column, centre) == (1 + thing.row, 1 + thing.column, 1)
        assert (labels.max(0) < list(LABELS.values())).all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(stack).float())
    assert values.min() > 0.4
    assert values.max() < 1.4
