from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tpcal.calibrate.deviation import (
    answer_deviation,
    local_deviation,
    log_probabilities,
    text_after_images,
)
from tpcal.calibrate.evaluation.metrics import is_right, normalise
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import encode, prompt_inputs, prompt_text
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.errors import UsageError
from tpcal.plans.laws.rounding import allowed, distance


def test_answers_follow_their_prompts(loaded: Loaded, scenes: Samples) -> None:
    batch = list(scenes)
    encoded = encode(loaded.processor, batch, loaded.model)
    tokenizer = loaded.processor.tokenizer
    for row, sample in enumerate(batch):
        start, end = (
            int(encoded.prompt_length[row]),
            int(encoded.inputs["attention_mask"][row].sum()),
        )
        ids = encoded.inputs["input_ids"][row]
        assert tokenizer.decode(ids[start:end]) == sample.answer
        assert tokenizer.decode(ids[:start]).endswith("ASSISTANT:")
        assert bool((ids[end:] == tokenizer.pad_token_id).all())
        valid = encoded.valid[row]
        assert encoded.positions[row][valid].tolist() == list(range(start - 1, end))


def test_teacher_forcing_gives_what_rows_alone_give(loaded: Loaded, scenes: Samples) -> None:
    together = encode(loaded.processor, list(scenes), loaded.model)
    logits = loaded.model(**together.inputs).logits
    real = together.inputs["attention_mask"].bool()
    most = allowed(loaded.model, lambda: loaded.model(**together.inputs).logits[real])
    for row, sample in enumerate(scenes):
        alone = encode(loaded.processor, [sample], loaded.model)
        expected = loaded.model(**alone.inputs).logits[0]
        length = expected.shape[0]
        assert distance(logits[row, :length], expected) <= most


def test_without_an_answer_the_models_own_stands_in(loaded: Loaded, scenes: Samples) -> None:
    known = scenes[0]
    unknown = Sample("x", scenes[1].images, scenes[1].question)
    encoded = encode(loaded.processor, [known, unknown], loaded.model)
    prompts = prompt_inputs(loaded.processor, [known, unknown], loaded.model)
    own = generate_ids(loaded.model, loaded.processor, prompts, 16)[1]
    start = int(encoded.prompt_length[1])
    assert encoded.inputs["input_ids"][1, start : start + len(own)].tolist() == own


def test_several_images_share_a_prompt(loaded: Loaded, scenes: Samples) -> None:
    two = Sample("x", (scenes[0].images[0], scenes[1].images[0]), "Is there a circle?", "yes")
    encoded = encode(loaded.processor, [two, scenes[0]], loaded.model)
    image = loaded.model.config.image_token_id
    assert (encoded.inputs["input_ids"] == image).sum(dim=1).tolist() == [32, 16]


def test_a_processor_without_a_chat_template_gets_a_plain_prompt(
    loaded: Loaded, scenes: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.processor, "chat_template", None)
    monkeypatch.setattr(loaded.processor.tokenizer, "chat_template", None)
    text = prompt_text(loaded.processor, scenes[0])
    assert text == f"USER: <image> {scenes[0].question} ASSISTANT:"
    encode(loaded.processor, [scenes[0]], loaded.model)


def test_global_deviation_by_hand() -> None:
    full = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.5, 0.5]]]).log()
    pruned = torch.tensor([[[0.25, 0.75], [0.1, 0.9]], [[0.25, 0.75], [0.0, 1.0]]]).log()
    valid = torch.tensor([[True, True], [True, False]])
    kl, flips = answer_deviation(full, pruned, valid)
    first = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    second = 0.9 * torch.tensor(9.0).log() + 0.1 * torch.tensor(1 / 9).log()
    torch.testing.assert_close(kl, torch.stack([(first + second) / 2, torch.tensor(0.0)]))
    assert flips.tolist() == [1.0, 0.0]  # .5/.5 -> .25/.75 flips: ties go to the first


def test_local_deviation_by_hand() -> None:
    full = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [9.0, 9.0]]])
    pruned = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]]])
    where = torch.tensor([[True, True, False]])
    assert local_deviation(pruned, full, where).tolist() == [0.25]
    assert local_deviation(pruned, full, torch.zeros_like(where)).tolist() == [0.0]


def test_only_text_after_an_image_can_change() -> None:
    text = torch.tensor([[1, 1, 0, 0, 1, 1, 0]]).bool()
    visual = torch.tensor([[0, 0, 1, 1, 0, 0, 0]]).bool()
    assert text_after_images(text, visual).int().tolist() == [[0, 0, 0, 0, 1, 1, 0]]


def test_log_probabilities_are_float32() -> None:
    assert log_probabilities(torch.zeros(1, 1, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("The Red Car.", "red car"),
        ("two", "2"),
        ("1,000.5", "1000.5"),
        ("  isn't it?  ", "isnt it"),
        ("a", "a"),
        ("left/right", "left right"),
        ("Yes!", "yes"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_in_vqa(given: str, normal: str) -> None:
    assert normalise(given) == normal


def test_right_and_wrong_answers() -> None:
    assert is_right("A dog.", "dog")
    assert not is_right("dogs", "dog")
    assert not is_right("", "dog")


def test_a_sample_that_the_processor_refuses_is_named(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(loaded.processor).__call__

    def refuses(self: Any, images: Any = None, **how: Any) -> Any:
        if any(image.width > 100 for row in images for image in row):
            raise ValueError("absolute aspect ratio must be smaller than 200, got 300.0")
        return plain(self, images=images, **how)

    monkeypatch.setattr(type(loaded.processor), "__call__", refuses)
    samples = [Sample(f"s{at}", (Image.new("RGB", (w, 9)),), "?") for at, w in enumerate((9, 200))]
    with pytest.raises(UsageError, match=r"Sample s1 must be .* got absolute aspect ratio"):
        prompt_inputs(loaded.processor, samples, loaded.model)
