"""What a V2 model runner runs in a step, read from its own data, without vLLM."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from tpcal.integrations.vllm import touchpoints


def test_a_step_has_the_requests_of_the_batch_in_its_order() -> None:
    batch = SimpleNamespace(  # padded to four rows, as graphs need it
        req_ids=["second", "first"],
        num_reqs=2,
        num_computed_tokens_np=np.array([5, 0], dtype=np.int32),
        num_scheduled_tokens=np.array([1, 7], dtype=np.int32),
    )
    requests = {name: SimpleNamespace(req_id=name) for name in ("first", "second", "third")}
    runner = SimpleNamespace(block_tables=SimpleNamespace(block_sizes=[16, 32]))
    tables = [torch.arange(8).view(4, 2), torch.arange(8, 16).view(4, 2)]
    step = touchpoints.step_v2(runner, requests, batch, tables)
    assert [(r.request.req_id, r.first, r.n_tokens) for r in step.running] == [
        ("second", 5, 1),
        ("first", 0, 7),
    ]
    rows, size = step.table(1)
    assert (rows.tolist(), size) == ([[8, 9], [10, 11]], 32)
    assert set(step.known) == {"first", "second", "third"}


def test_a_call_of_the_model_goes_through_the_plan() -> None:
    model, given = nn.Linear(2, 2), torch.rand(1, 2)
    wanted = model(given)

    def doubled(forward: Callable[[], Tensor]) -> Tensor:
        return 2 * forward()

    touchpoints.around_forward(model, doubled)
    assert torch.equal(model(input=given), 2 * wanted)
