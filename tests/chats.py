"""What holds for prompts that a real processor makes, pruned as a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import opened
import torch

from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs, prompt_text
from tpcal.calibrate.inputs.images import read_images
from tpcal.calibrate.inputs.sample import Sample
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Plan

N_WORDS = 4


def keeps_what_the_plan_says(
    model: Any, processor: Any, samples: Sequence[Sample], plan: Plan, n_visual: tuple[int, ...]
) -> None:
    """A batch has the plan's counts, and each row answers and keeps as it does alone."""
    with apply(model, plan) as handle:
        together = prompt_inputs(processor, samples, model)
        answers = generate_ids(model, processor, together, N_WORDS)
        report = handle.last
        assert report is not None
        assert report.n_visual == n_visual
        for row, n in enumerate(n_visual):
            assert tuple(len(cut.kept[row]) for cut in report.cuts) == plan.counts(n)
        for row, sample in enumerate(samples):
            alone = prompt_inputs(processor, [sample], model)
            assert generate_ids(model, processor, alone, N_WORDS) == [answers[row]]
            if sample.images:
                assert handle.last is not None
                assert [c.kept[0] for c in handle.last.cuts] == [c.kept[row] for c in report.cuts]


def is_the_processors_chat(model: Any, processor: Any, sample: Sample) -> None:
    """Our prompt is the chat that the processor itself tokenizes."""
    content = [{"type": "image", "image": image} for image in sample.images]
    content.append({"type": "text", "text": sample.question})
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    mine = prompt_inputs(processor, [sample], model)
    assert set(chat) == set(mine)
    for name, value in mine.items():
        torch.testing.assert_close(value, chat[name], check_dtype=False)


def sees_files_as_the_processor_does(model: Any, processor: Any) -> None:
    """Of a file in any mode we make what the processor makes of ``Image.open(file)``."""
    for mode, make in opened.FILES.items():
        data = make()
        sample = Sample(mode, read_images(data, None, mode), "What is it?")
        mine = prompt_inputs(processor, [sample], model)
        theirs = processor(
            images=opened.in_pillow(data),
            text=prompt_text(processor, sample),
            add_special_tokens=False,
            return_tensors="pt",
        )
        for name, value in mine.items():
            if name not in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
                torch.testing.assert_close(
                    value, theirs[name], rtol=0, atol=0, msg=f"{mode} {name}"
                )
