"""With the numbers that the host knows, no selector waits for a GPU, and none chooses otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from selector_variants import NAMED
from torch import Tensor

from benchmarks.emulated_gpu import EmulatedGpu
from tpcal.plans.selectors import _fused, create
from tpcal.plans.selectors.base import Counts, Tokens, read_counts


@pytest.fixture(autouse=True)
def _plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, where it is installed, has no driver for an emulated GPU."""
    monkeypatch.setattr(_fused, "ENABLED", False)


def counted(tokens: Tokens, n_keep: Tensor) -> Tokens:
    """The tokens with what the host knows of them, as the executor says it."""
    read = read_counts(tokens.valid, tokens.image, tokens.text_valid, n_keep)
    return replace(tokens, counts=replace(read, filler_right=True))


@NAMED
@pytest.mark.parametrize(
    ("images", "n_keep"),
    [([[(6, 7)]], [11]), ([[(4, 4)], [(5, 6)], [(1, 1)]], [7, 13, 0]), ([[(3, 5), (4, 4)], [], [(5, 5)]], [12, 0, 25])],
    ids=["one", "batch", "images"],
)  # fmt: skip
def test_no_selector_waits_for_the_device(name, params, images, n_keep, make_row, stack):
    selector, wanted = create(name, params), torch.tensor(n_keep)
    tokens = stack([make_row(shapes, seed, n_text=seed + 3) for seed, shapes in enumerate(images)])
    plain = selector.select(tokens, wanted)
    tokens = counted(tokens, wanted)
    assert torch.equal(selector.select(tokens, wanted), plain)
    merged = selector.merged(tokens, plain)
    with EmulatedGpu() as gpu:
        seen = gpu.put_fields(tokens)
        stays = selector.select(seen, gpu.put(wanted))
        made = selector.merged(seen, stays)
    assert torch.equal(stays.held, plain)
    # The rounds of vispruner follow from the sizes of images, which the host knows of one image.
    waits = int(name == "vispruner" and len(images) > 1 and len(images[0]) > 1)
    assert gpu.syncs.total() == waits, gpu.syncs
    if merged is not None:
        torch.testing.assert_close(made.held[plain], merged[plain])


@NAMED
def test_without_them_a_selector_reads_them_and_chooses_the_same(name, params, make_row, stack):
    tokens, wanted = stack([make_row([(4, 4)]), make_row([(3, 3)], 1)]), torch.tensor([5, 9])
    selector = create(name, params)
    with EmulatedGpu() as gpu:
        stays = selector.select(gpu.put_fields(tokens), gpu.put(wanted))
    assert torch.equal(stays.held, selector.select(tokens, wanted))


def test_the_numbers_are_those_of_the_tensors(make_row, stack):
    tokens = stack([make_row([(2, 3), (1, 1)], n_text=4), make_row([], n_text=2)])
    found = read_counts(tokens.valid, tokens.image, tokens.text_valid, torch.tensor([5, 5]))
    assert found == Counts((7, 0), (5, 0), (2, 0), (4, 2), filler_right=False)
    assert found.images == 2
