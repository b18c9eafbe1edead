"""Selectors on a GPU: the choices of the CPU, the fused loops, launches, and no wait of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import gpu_cases
import pytest
import torch
from selector_variants import NAMED
from torch import Tensor

from benchmarks.emulated_gpu import EmulatedGpu
from tpcal.plans.selectors import _fused, create
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.base import Tokens, read_counts
from tpcal.plans.selectors.cdpruner import greedy_map
from tpcal.plans.selectors.coverage import covering
from tpcal.plans.selectors.diversity import max_min, max_sum
from tpcal.plans.selectors.vispruner import Groups, distinct, widths

pytestmark = pytest.mark.gpu

BATCHES: Mapping[str, tuple[Sequence[Sequence[tuple[int, int]]], Sequence[int]]] = {
    "one": ([[(24, 24)]], [127]),
    "ragged": ([[(6, 6)], [(12, 12)], [(1, 1)]], [7, 33, 0]),
    "images": ([[(5, 7), (6, 6)], [], [(9, 5)]], [20, 0, 25]),
}
FUSED = {
    "max_min": "_farthest_first",
    "max_sum": "_max_sum",
    "greedy_map": "_greedy_map",
    "covering": "_covering",
}
"""The kernel of each greedy loop."""
ROUNDS = "_nearest_odd", "_without_nearest"
"""The kernels of a round of `vispruner`."""


@pytest.fixture(params=BATCHES)
def batch(
    request: pytest.FixtureRequest, make_row: Callable[..., Tokens], stack: Callable[..., Tokens]
) -> Callable[[torch.dtype], tuple[Tokens, Tensor]]:
    """Tokens of some rows on the CPU, with what the host knows of them, and how many stay."""
    images, n_keep = BATCHES[request.param]

    def made(dtype: torch.dtype) -> tuple[Tokens, Tensor]:
        rows = [
            make_row(shapes, seed, dtype=dtype, n_text=seed + 3)
            for seed, shapes in enumerate(images)
        ]
        tokens, wanted = stack(rows), torch.tensor(n_keep)
        read = read_counts(tokens.valid, tokens.image, tokens.text_valid, wanted)
        return replace(tokens, counts=replace(read, filler_right=True)), wanted

    return made


def there(tokens: Tokens, device: torch.device) -> Tokens:
    given = {f.name: getattr(tokens, f.name) for f in fields(tokens)}
    return replace(tokens, **{n: x.to(device) for n, x in given.items() if isinstance(x, Tensor)})


@pytest.mark.parametrize(
    ("dtype", "fused"),
    [(torch.float64, True), (torch.float32, True), (torch.bfloat16, True), (torch.float32, False)],
)
@NAMED
def test_choices_are_those_of_the_cpu(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    batch: Callable[[torch.dtype], tuple[Tokens, Tensor]],
    name: str,
    params: dict[str, Any],
    dtype: torch.dtype,
    fused: bool,
) -> None:
    monkeypatch.setattr(_fused, "ENABLED", fused and _fused.ENABLED)
    (tokens, wanted), selector = batch(dtype), create(name, params)
    plain = selector.select(tokens, wanted)
    seen = there(tokens, gpu)
    stays = selector.select(seen, wanted.to(gpu))
    merged = selector.merged(seen, stays)
    assert stays.device.type == gpu.type
    assert stays.sum(-1).tolist() == plain.sum(-1).tolist()
    # Two orders of sums in float32 round a distance to another step now and then.
    n_other = int((stays.cpu() & ~plain).sum())
    assert n_other <= (0 if dtype == torch.float64 else 2 + 0.02 * int(plain.sum()))
    if merged is not None and not n_other:
        exact = selector.merged(tokens, plain)
        torch.testing.assert_close(merged.cpu()[plain], exact[plain], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("n_tokens", "dtype"),
    [(36, torch.float64), *((n, torch.float32) for n in (36, 144, 576, 2880))],
)
def test_kernels_pick_what_the_loops_pick(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, n_tokens: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    # Wider than the number of picks, as in a model: so no pick is left to rounding.
    x = torch.randn(3, n_tokens, 640, generator=g, dtype=torch.float64).to(gpu, dtype)
    x[1, n_tokens // 2 :] = x[1, : n_tokens - n_tokens // 2].clone()  # every token twice
    lengths = torch.tensor([n_tokens, n_tokens, n_tokens // 3], device=gpu)
    valid = torch.arange(n_tokens, device=gpu) < lengths[:, None]
    n_picks = torch.tensor([n_tokens // 5, n_tokens // 9, 0], device=gpu)
    pairs = Distances(x, valid)
    relevance = torch.rand(valid.shape, generator=g, dtype=torch.float64).to(gpu)
    pivot = torch.tensor([4, 0, 8], device=gpu)
    weight = ((relevance * 2**20).ceil() / 2**20).masked_fill(~valid, 0)
    if dtype == torch.float64:  # whose distances leave no room for exact weights
        weight = valid.double()
    step = torch.full_like(lengths, 1 + n_tokens // 72)
    sizes = Groups(lengths, n_picks, step).read()
    for function, given in (
        (max_min, (pairs, valid, n_picks)),
        (max_sum, (pairs, pivot, valid, n_picks)),
        (greedy_map, (pairs, relevance, valid, n_picks)),
        (covering, (pairs, weight, valid.double(), n_picks, n_tokens // 5)),
        (distinct, (pairs.table, Groups(lengths, n_picks, step), widths(sizes))),
    ):
        fused = function(*given)
        with monkeypatch.context() as patch:
            patch.setattr(_fused, "ENABLED", False)
            assert torch.equal(fused, function(*given)), function.__name__


@NAMED
def test_no_selector_waits_for_the_device(
    gpu: torch.device,
    batch: Callable[[torch.dtype], tuple[Tokens, Tensor]],
    name: str,
    params: dict[str, Any],
) -> None:
    (tokens, wanted), selector = batch(torch.float32), create(name, params)
    seen, asked = there(tokens, gpu), wanted.to(gpu)
    for _ in range(2):  # the first round compiles the kernels
        with gpu_cases.waits(gpu) as waits:
            selector.merged(seen, selector.select(seen, asked))
    # The rounds of vispruner follow from the sizes of images, which the host knows of one image.
    allowed = int(name == "vispruner" and tokens.counts.images > 1)
    assert len(waits) <= allowed, waits


def emulated(selector: Any, tokens: Tokens, wanted: Tensor) -> int:
    """Launches on the emulated GPU, with plain loops."""
    with EmulatedGpu() as device:
        seen, asked = device.put_fields(tokens), device.put(wanted)
        selector.select(seen, asked)  # what is made once, as tables are
        before = device.launches.total()
        selector.select(seen, asked)
    return device.launches.total() - before


def launched(selector: Any, tokens: Tokens, wanted: Tensor, gpu: torch.device) -> list[str]:
    """Names of the kernels that a choice launches on the GPU, copies and fills left out."""
    seen, asked = there(tokens, gpu), wanted.to(gpu)
    selector.select(seen, asked)  # what is made once, as kernels and tables are
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        selector.select(seen, asked)
        torch.cuda.synchronize()
    on_gpu = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
    return [name for name in on_gpu if not name.startswith(("Memcpy", "Memset"))]


@NAMED
def test_launches_are_those_that_the_emulated_gpu_counts(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    make_row: Callable[..., Tokens],
    name: str,
    params: dict[str, Any],
) -> None:
    case, selector = make_row([(12, 12)]), create(name, params)
    tokens, wanted = known(case, 33)
    with monkeypatch.context() as patch:
        patch.setattr(_fused, "ENABLED", False)
        expected = emulated(selector, tokens, wanted)
        assert expected > 0
        if gpu.type != "cuda":
            return
        plain = launched(selector, tokens, wanted, gpu)
    fused = launched(selector, tokens, wanted, gpu)
    loops = [kernel for kernel in fused if any(kernel.startswith(k) for k in FUSED.values())]
    print(
        f"launches of {name} {params}: {len(plain)} plain, {len(fused)} fused, {expected} emulated"
    )
    record_property("launches", (len(plain), len(fused), expected))
    # One operation may launch several kernels, a sort for instance.
    assert 0.7 * expected <= len(plain) <= 4 * expected
    if any(kernel.startswith(ROUNDS) for kernel in fused):
        assert len(fused) < len(plain)
    elif loops:  # each is one kernel, however many tokens it picks
        assert len(fused) < len(plain)
        assert len(launched(selector, *known(case, 66), gpu)) == len(fused)
    else:
        assert len(fused) == len(plain)


def known(tokens: Tokens, n_keep: int) -> tuple[Tokens, Tensor]:
    """The tokens of one row with what the host knows of them, and how many of them stay."""
    wanted = torch.tensor([n_keep])
    read = read_counts(tokens.valid, tokens.image, tokens.text_valid, wanted)
    return replace(tokens, counts=replace(read, filler_right=True)), wanted
