"""What selectors in vLLM learn from the question, without vLLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tpcal.integrations.vllm.image_tokens import ImageColumns, tokens_of
from tpcal.integrations.vllm.question import AttentionShape, PromptColumns, QuestionReader
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.executor.attention_reader import Request, warn_out_of_sight
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


@pytest.mark.parametrize(("window", "n_warnings"), [(8, 1), (9, 0), (None, 0)])
def test_a_window_that_hides_the_image_is_warned_of(
    window: int | None, n_warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    # An image of 4 tokens at place 2, in a prompt whose last place is 10.
    prompt = PromptColumns(0, np.arange(11), (Span(2, 4),))
    image = ImageColumns(2 + np.arange(4), np.arange(4), 4, 2, prompt)
    tokens, columns = tokens_of([image], 3, torch.randn(11, 8))
    reader = QuestionReader({2: AttentionShape(2, 1, 0.5, window=window)})
    warn_out_of_sight.cache_clear()
    rows = torch.randn(11, 3 * 4)
    reader.completed(tokens, frozenset({"scores"}), [prompt], columns, torch.randn(11, 8), rows)
    assert len(caplog.records) == n_warnings


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("sinks", [None, torch.tensor([2.0, -1.0])])
def test_the_weights_are_those_of_a_softmax(
    window: int | None, sinks: torch.Tensor | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 7, 4, generator=generator), torch.randn(7, 4, generator=generator)
    rows = torch.cat((query.transpose(0, 1).flatten(1), key), dim=1)
    shape = AttentionShape(2, 1, 0.5, sinks=sinks, window=window)
    read = shape.capture(rows, Request(torch.tensor([6])))
    scores = query[:, -1] @ key.T * 0.5  # [H, n]
    if window is not None:
        scores[:, : max(0, 7 - window)] = -torch.inf
    added = torch.full((2, 1), -torch.inf) if sinks is None else sinks[:, None]
    wanted = torch.cat((scores, added), dim=1).softmax(dim=1)[:, :-1]
    torch.testing.assert_close((read.logits - read.lse[..., None]).exp()[0], wanted)
