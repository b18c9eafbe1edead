"""Processes that share the heads learn and choose what one process with all heads does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor

from tpcal.integrations.vllm.image_tokens import ImageColumns, tokens_of
from tpcal.integrations.vllm.question import AttentionShape, PromptColumns, QuestionReader
from tpcal.integrations.vllm.ranks import ALONE, Ranks
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.selectors.base import Tokens

WIDTH, SCALING = 8, 0.3
NEEDS = frozenset({"scores", "text_scores", "text", "keys"})


class Group:
    """Threads that stand for the processes, with the calls that vLLM's group of them has."""

    def __init__(self, n: int, n_copies: int = 1) -> None:
        self.n, self.n_copies = n, n_copies
        self._barrier, self._given = Barrier(n), [torch.empty(0)] * n

    def run(self, call: Callable[[int, Ranks], Tokens | Tensor]) -> list:  # type: ignore[type-arg]
        """The results of ``call`` in each of the processes."""

        def process(rank: int) -> Tokens | Tensor:
            def gathered(part: Tensor, dim: int) -> Tensor:
                return torch.cat(self._all(rank, part), dim)

            def from_first(value: Tensor) -> Tensor:
                return self._all(rank, value)[0]

            return call(rank, Ranks(self.n, self.n_copies, gathered, from_first))

        with ThreadPoolExecutor(self.n) as pool:
            return list(pool.map(process, range(self.n)))

    def _all(self, rank: int, part: Tensor) -> list[Tensor]:
        self._given[rank] = part
        self._barrier.wait(timeout=20)
        found = list(self._given)
        self._barrier.wait(timeout=20)
        return found


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "n"), [(4, 4, 2), (4, 2, 2), (8, 2, 4), (4, 1, 4), (8, 2, 8)]
)
def test_a_selector_gets_the_heads_of_all_processes(n_heads: int, n_kv_heads: int, n: int) -> None:
    generator = torch.Generator().manual_seed(n_heads + n)
    span, length = Span(2, 9), 16
    prompts = [PromptColumns(first, np.arange(length), (span,)) for first in (0, length)]
    images = [
        ImageColumns(prompt.first + span.places, np.arange(9), 9, 4, prompt) for prompt in prompts
    ]
    states = torch.randn(2 * length, 6, generator=generator)
    tokens, columns = tokens_of(images, 3, states)
    query = torch.randn(2 * length, n_heads, WIDTH, generator=generator)
    key = torch.randn(2 * length, n_kv_heads, WIDTH, generator=generator)

    def read(query: Tensor, key: Tensor, ranks: Ranks) -> Tokens:
        shape = AttentionShape(query.shape[1], key.shape[1], SCALING)
        rows = torch.cat((query.flatten(1), key.flatten(1)), dim=1)
        reader = QuestionReader({2: shape}, ranks=ranks)
        return reader.completed(tokens, NEEDS, prompts, columns, states, rows)

    n_copies = max(1, n // n_kv_heads)

    def part(rank: int, ranks: Ranks) -> Tokens:
        own = query.chunk(n, dim=1)[rank]
        return read(own, key.chunk(n // n_copies, dim=1)[rank // n_copies], ranks)

    wanted = read(query, key, ALONE)
    for found in Group(n, n_copies).run(part):
        for field in fields(wanted):
            one, other = getattr(found, field.name), getattr(wanted, field.name)
            if isinstance(other, Tensor):
                torch.testing.assert_close(one, other)
            else:
                assert one == other


def test_all_processes_make_the_choice_of_the_first() -> None:
    choices = torch.tensor([[[True, False, True]], [[False, True, True]]])
    found = Group(2).run(lambda rank, ranks: ranks.agreed(choices[rank]))
    assert [one.tolist() for one in found] == [choices[0].tolist()] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_processes_have_the_numbers_of_the_first(dtype: torch.dtype) -> None:
    states = torch.rand(2, 3, 5).to(dtype).transpose(1, 2)
    found = Group(2).run(lambda rank, ranks: ranks.agreed(states[rank]))
    assert all(torch.equal(one, states[0]) for one in found)


def test_one_process_asks_nobody() -> None:
    part = torch.rand(2, 3, 4)
    assert ALONE.heads(part, 1) is part
    assert ALONE.mean(part) is part
    assert ALONE.agreed(part) is part
    assert torch.equal(ALONE.keys(part), part)
