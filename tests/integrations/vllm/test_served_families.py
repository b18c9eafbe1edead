"""Every family that runs in vLLM gives the answers of tpcal's executor: tiny random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import served
import torch
from PIL import Image
from served import Answers
from served_families import FAMILIES

import tpcal
from tpcal import Cut, Plan
from tpcal.plans.engines import VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

SIZES = ((84, 84), (224, 112), (56, 168), (140, 196), (196, 196), (28, 84))
N_TOKENS = 12
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


def _asked(prompt: str) -> list[tuple[str, Image.Image]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, (width, height) in enumerate(SIZES * 4):
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        found.append((prompt.format(8 + number), Image.fromarray(noise.numpy())))
    return found


def _executor(folder: Path, plan: Plan, asked: list[tuple[str, Image.Image]]) -> Answers:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = Answers()
    with tpcal.apply(model, plan) as handle, torch.inference_mode():
        for text, image in asked:
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS
            )
            n = inputs["input_ids"].shape[1]
            assert handle.last is not None
            found.prompts.append(output[0, :n].tolist())
            found.tokens.append(output[0, n:].tolist())
            found.kept.append([cut.kept[0] for cut in handle.last.cuts])
    return found


def test_every_architecture_that_is_said_to_run_is_tried() -> None:
    assert set(VLLM.squares) == set(FAMILIES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_answers_and_kept_tokens_are_those_of_the_executor(
    architecture: str, tmp_path: Path
) -> None:
    save, prompt = FAMILIES[architecture]
    model, plan, asked = tmp_path / "model", _plan(architecture), _asked(prompt)
    model.mkdir()
    save(model)
    wanted = _executor(model, plan, asked)
    chunk = CHUNKS.get(architecture, 64)
    options = {"max_num_batched_tokens": chunk, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    with served.engine(plan, tmp_path, model=model, **options) as engine:
        found = engine.recorded(
            [(t, [image]) for t, image in asked], N_TOKENS, min_tokens=N_TOKENS
        )
        waited = engine.n_waited
    assert found.prompts == wanted.prompts
    assert found.kept == wanted.kept
    assert found.tokens == wanted.tokens
    assert waited > 0
