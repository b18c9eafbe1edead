"""The second built-in model's training: packed questions, adapters, checkpoints, measuring."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_smol import save_tiny_language_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from tools.embedded.card import BEGIN, END, write
from tools.smol.answers import Examinee, _without_visual
from tools.smol.card import table
from tools.smol.export import export
from tools.smol.sequences import N_EMPTY, N_VISUAL, Packer, Tree, collate, right_answers
from tools.smol.train import Training, parser
from tpcal.calibrate.embedded.scenes import first_seed, paint_scene, plan_scene
from tpcal.calibrate.smol.assemble import assemble


def _options(out: Path) -> argparse.Namespace:
    given = ["--images", "2", "--room", "120", "--rank", "2", "--rate", "0.1"]
    given += ["--projector-scenes", "3", "--projector-steps", "2"]
    return parser().parse_args(["--out", str(out), *given])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("training")
    save_tiny_language_model(folder / "language-model")
    training = Training(_options(folder))
    for _ in range(2):
        training._step()
    training._save()
    return folder


@pytest.fixture(scope="module")
def training(out: Path) -> Training:
    """The training, resumed."""
    return Training(_options(out))


@pytest.fixture(scope="module")
def assembled(out: Path) -> Path:
    """The model as it is shipped and put together."""
    export(out / "checkpoint.pt", out / "adapters.safetensors")
    assemble(out / "language-model", out / "adapters.safetensors", out / "model")
    return out / "model"


def test_a_token_sees_its_own_path_only() -> None:
    tree = Tree()
    root = tree.append(7, 0, -1)
    one, other = tree.add([1, 2, 3], root), tree.add([1, 4], root)
    assert (one, other) == ([1, 2, 3], [1, 4])
    assert tree.positions == [0, 1, 2, 3, 2]
    assert tree.n_new([1, 2, 9], root) == 1
    seen = [set(np.flatnonzero(row)) for row in tree.visible()]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}]


def test_a_sequence_has_room_for_no_more_tokens_than_it_is_given(training: Training) -> None:
    rng = np.random.default_rng(0)
    for room in (60, 200):
        tree = training.packer.scene(5, easy=False, centres=False, room=room, rng=rng).tree
        n_start = len(training.packer.ids("<|im_start|>user\n\n")) + N_VISUAL
        assert n_start < len(tree.ids) <= n_start + room


def test_the_first_part_shows_the_objects_and_some_empty_patches(training: Training) -> None:
    scene = training.packer.scene(
        3, easy=False, centres=True, room=90, rng=np.random.default_rng(0)
    )
    layout = plan_scene(3)[0]
    centres = {int(s.y) // 8 * 12 + int(s.x) // 8 for s in layout.shapes}
    assert centres <= set(scene.visual)
    n_glyphs = sum(len(glyphs.text) for glyphs in layout.glyphs)
    assert len(scene.visual) == len(layout.shapes) + n_glyphs + N_EMPTY


def test_a_resumed_training_is_an_uninterrupted_one(
    tmp_path: Path, out: Path, training: Training
) -> None:
    save_tiny_language_model(tmp_path / "language-model")
    whole = Training(_options(tmp_path))
    for _ in range(3):
        whole._step()
    resumed = Training(_options(out))
    assert resumed.progress.step == 2
    resumed._step()
    before, after = resumed.learner.trained(), whole.learner.trained()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert resumed.progress.n_answers == whole.progress.n_answers
    # The step changed something, or the comparison above says nothing.
    start = training.learner.trained()
    assert not all(torch.equal(before[name], start[name]) for name in before)


def test_the_log_counts_right_answers_by_group(out: Path) -> None:
    training = Training(_options(out))
    training._step()
    n = training.progress.n_answers
    training._report()
    line = (out / "log.jsonl").read_text().splitlines()[-1]
    assert f'"answers": {n}' in line
    assert '"background": "' in line
    assert not training.progress.losses


def test_packed_questions_are_answered_as_the_assembled_model_answers_each(
    out: Path, assembled: Path
) -> None:
    """Compares packing, adapters, export and merging with the ordinary forward."""
    model: Any = AutoModelForImageTextToText.from_pretrained(assembled)
    processor = AutoProcessor.from_pretrained(assembled)
    learner = Training(_options(out)).learner
    learner.load_trained({n: t.bfloat16().float() for n, t in learner.trained().items()})
    layout, asked = plan_scene(first_seed("train", 5))
    questions = list({q.question: q for q in asked}.values())
    image = paint_scene(first_seed("train", 5), layout)
    packer = Packer(processor.tokenizer)
    batch = collate([packer.packed(np.array(image), np.arange(N_VISUAL), questions, 10**6)])
    with torch.no_grad():
        packed = learner.logits(batch)
    assert len(batch.groups) == len(questions) > 5
    for i, question in enumerate(questions):
        mine = torch.from_numpy(batch.questions == i)
        targets = batch.targets[mine]
        turns = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": question.question}],
            },
            {"role": "assistant", "content": question.answer},
        ]
        inputs = processor(
            images=image, text=processor.apply_chat_template(turns), return_tensors="pt"
        )
        assert inputs["input_ids"][0, -len(targets) :].equal(targets)
        with torch.no_grad():
            alone = model(**inputs).logits[0, -len(targets) - 1 : -1]
        torch.testing.assert_close(packed[mine], alone, atol=1e-3, rtol=1e-3)


def test_without_visual_tokens_from_a_layer_on_the_answers_do_not_depend_on_the_image(
    assembled: Path,
) -> None:
    examinee = Examinee(assembled)
    found = examinee.answers("eval", 5, [0, 2])
    assert list(found) == [0, 2, 3]
    n = {group: len(right) for group, right in found[3].items()}
    assert sum(n.values()) > 20
    assert all(n == {g: len(r) for g, r in answers.items()} for answers in found.values())
    # Replay gives what the ordinary pass gives where nothing is dropped.
    batch = next(iter(examinee._batches("eval", 4)))
    whole = [list(right) for _, right in examinee._right(batch, [])]
    hidden = examinee.decoder(
        inputs_embeds=examinee._start(batch).hidden,
        attention_mask=batch.visible,
        position_ids=batch.positions,
    ).last_hidden_state
    logits = examinee.model.lm_head(hidden[batch.asked])
    assert whole == [list(right_answers(logits.argmax(-1), batch))]
    # Two images get the same answers to the same question once nothing of them is left.
    blank = replace(batch, pixels=torch.zeros_like(batch.pixels))
    with torch.no_grad():
        states = [_without_visual(examinee._start(b), b).hidden for b in (batch, blank)]
    assert torch.equal(*states)


def test_the_table_has_a_row_for_each_depth(tmp_path: Path) -> None:
    found = {
        2: {"exist": [False, True], "at": [False]},
        30: {"exist": [True, True], "at": [False]},
    }
    text = table("test", 1, found)
    assert "| questions | 3 | 2 | 1 |" in text
    assert "| unpruned | 0.667 | 1.00 | 0.00 |\n| drop all @2 | 0.333 | 0.50 | 0.00 |" in text
    card = tmp_path / "card.md"
    card.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(card, text)
    assert card.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"
