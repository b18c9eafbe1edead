"""vLLM without tpcal's plugin at work: it takes the embeddings of a prompt that was cut before."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import served
import torch

import tpcal
from tpcal.calibrate.embedded import FOLDER, samples

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

N = 28
MAX_TIES = 1
"""Of the questions."""


@pytest.mark.timeout(600)
def test_vllm_answers_to_embeddings_as_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    for name, value in served.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    model: Any = AutoModelForImageTextToText.from_pretrained(FOLDER)
    processor = AutoProcessor.from_pretrained(FOLDER)
    plan, prompts, expected = served.PLANS["before the decoder"], [], []
    for sample in samples("eval", N):
        text = served.prompt(sample.question)
        inputs = processor(images=sample.image, text=text, return_tensors="pt")
        pruned = tpcal.pruned_prompt(model, plan, inputs)
        assert pruned.inputs_embeds.shape[1] == inputs["input_ids"].shape[1] - 144 + 32
        out = model.generate(
            inputs_embeds=pruned.inputs_embeds,
            attention_mask=pruned.attention_mask,
            max_new_tokens=served.N_TOKENS,
            do_sample=False,
        )
        expected.append(processor.tokenizer.decode(out[0], skip_special_tokens=True).strip())
        prompts.append({"prompt_embeds": pruned.inputs_embeds[0]})
    given = _answers(prompts)
    others = [pair for pair in zip(given, expected, strict=True) if pair[0] != pair[1]]
    assert len(others) <= MAX_TIES, others


def _answers(prompts: list[dict[str, torch.Tensor]]) -> list[str]:
    from vllm import LLM, SamplingParams

    llm: Any = LLM(
        str(FOLDER),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        kv_cache_memory_bytes=64 << 20,
        distributed_executor_backend="uni",
        enable_prompt_embeds=True,
    )
    greedy = SamplingParams(temperature=0, max_tokens=served.N_TOKENS)
    texts = [out.outputs[0].text.strip() for out in llm.generate(prompts, greedy)]
    del llm
    gc.collect()
    return texts
