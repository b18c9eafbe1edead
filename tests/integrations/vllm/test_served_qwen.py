"""M-RoPE, grouped queries and images of any size: a tiny random Qwen2.5-VL in vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import served
import served_qwen
import torch
from PIL import Image

import tpcal
from tpcal import Cut, Plan

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

PLAN = Plan(
    cuts=(
        Cut(layer=2, keep=0.5, selector="diversity"),
        Cut(layer=4, keep=0.2, selector="random"),
        Cut(layer=6, keep=0.0),
    )
)
SIZES = ((84, 84), (224, 112), (56, 168), (140, 196), (196, 196), (28, 84))
N_TOKENS = 12


def _asked() -> list[tuple[str, Image.Image]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, (width, height) in enumerate(SIZES * 4):
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        found.append((served_qwen.PROMPT.format(8 + number), Image.fromarray(noise.numpy())))
    return found


def _executor(folder: Path) -> list[tuple[list[int], list[int]]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    with tpcal.apply(model, PLAN), torch.inference_mode():
        for text, image in _asked():
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS
            )
            n = inputs["input_ids"].shape[1]
            found.append((output[0, :n].tolist(), output[0, n:].tolist()))
    return found


def test_answers_are_those_of_the_executor(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    served_qwen.save(model)
    wanted = _executor(model)
    prompts = [(text, [image]) for text, image in _asked()]
    options = {"max_num_batched_tokens": 64, "limit_mm_per_prompt": {"image": 1, "video": 0}}
    with served.engine(PLAN, tmp_path, model=model, **options) as engine:
        outputs = engine.generate(prompts, N_TOKENS, min_tokens=N_TOKENS)
        waited = engine.n_waited
    found = [(list(o.prompt_token_ids), list(o.outputs[0].token_ids)) for o in outputs]
    assert [prompt for prompt, _ in found] == [prompt for prompt, _ in wanted]
    assert [answer for _, answer in found] == [answer for _, answer in wanted]
    assert waited > 0
