"""What selectors in vLLM learn from the question, without vLLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tpcal.integrations.vllm.image_tokens import ImageColumns, tokens_of
from tpcal.integrations.vllm.question import PromptColumns, QuestionReader
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.selectors._counts import read_counts


def test_the_counts_on_the_host_are_those_of_the_tensors() -> None:
    # Two prompts side by side: 4 and 6 visual tokens from place 1 on, then 3 and 2 of text.
    prompts, images, first = [], [], 0
    for n_visual, n_text in ((4, 3), (6, 2)):
        span = Span(1, n_visual)
        prompt = PromptColumns(first, np.arange(1 + n_visual + n_text), (span,))
        columns = first + 1 + np.arange(n_visual)
        prompts.append(prompt)
        images.append(ImageColumns(columns, np.arange(n_visual), n_visual, 2, prompt))
        first += len(prompt.places)
    states = torch.randn(first, 8)
    tokens, columns = tokens_of(images, 2, states)
    needs = frozenset({"text"})
    found = QuestionReader({}).completed(tokens, needs, prompts, columns, states, None)
    assert found.text_valid is not None
    read = read_counts(found.valid, found.image, found.text_valid, torch.tensor([2, 2]))
    assert found.counts == replace(read, filler_right=True)
    assert found.counts.n_text == (3, 2)
