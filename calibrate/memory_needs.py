"""Memory that a run will need, estimated before it starts, and batches that keep to a limit."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from tpcal.calibrate.inputs.answer_tokens import MAX_ANSWER_TOKENS, OWN_ANSWER_TOKENS
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.models import Loaded, device_of, free_memory
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.tape_store import Store
from tpcal.plans.cost import DecoderShape, kv_bytes
from tpcal.plans.errors import UsageError
from tpcal.plans.families import find
from tpcal.plans.formats import gigabytes

N_TRIED = 8
"""Number of samples that are encoded to find the longest prompt, beside those with the largest
images."""
_FREE = 0.9
"""Share of the free memory that a run without a limit takes."""
_KEPT = 0.5
"""Share of the host's memory for recorded batches; further ones go to the disk."""


@dataclass(frozen=True)
class LongestPrompt:
    """The longest prompt of some samples, with its answer."""

    n_tokens: int
    """Visual, text and answer tokens together, S."""
    n_visual: int
    n_answer: int
    """Number of distributions that are compared, A."""


@dataclass(frozen=True)
class Need:
    """Estimated bytes that one sample takes."""

    work: float
    """Bytes on the device, while its batch runs."""
    kept: float
    """Bytes off the device, from its recording to the end."""
    beyond: str
    """What happens to recordings that the host's memory does not hold, in words."""


@dataclass(frozen=True)
class Arranged:
    """Batch size and store with which a run keeps to its memory."""

    batch_size: int
    store: Store
    said: str
    """One line for the user."""


def longest(loaded: Loaded, samples: Samples) -> LongestPrompt:
    """The longest prompt of each group's sample with the largest images, and of `N_TRIED` others.

    In many models more pixels are more tokens. Long texts show in samples that are spread evenly.
    """
    step, numbers = -(-len(samples) // N_TRIED), range(len(samples))
    by_size = sorted(numbers, key=samples.n_pixels.__getitem__)
    largest = {samples.sample_groups[i]: i for i in by_size}
    tried = sorted({*numbers[::step], *largest.values()})
    found = [_measured(loaded, samples[i]) for i in tried]
    return LongestPrompt(*(max(column) for column in zip(*found, strict=True)))


def _measured(loaded: Loaded, sample: Sample) -> tuple[int, int, int]:
    ids = prompt_inputs(loaded.processor, [sample], loaded.model)["input_ids"]
    n_visual = int(find(loaded.model).visual_mask(loaded.model, ids, None).sum())
    n_answer = OWN_ANSWER_TOKENS
    if sample.answer is not None:
        n_answer = min(MAX_ANSWER_TOKENS, _n_ids(loaded, sample.answer))
    return ids.shape[1] + n_answer, n_visual, n_answer + 1


def _n_ids(loaded: Loaded, answer: str) -> int:
    return len(loaded.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])


def of_plans(loaded: Loaded, prompt: LongestPrompt) -> Need:
    """The need of a search, which measures whole plans."""
    # With b bytes a number: kept are the input of layer 0 (S * D * b), the last outputs at the
    # answer's positions (A * D * b), and rotary tables, masks and ranks of S tokens.
    shape, n_bytes = loaded.shape, loaded.model.dtype.itemsize
    states = float(prompt.n_tokens * shape.hidden * n_bytes)
    answer = float(prompt.n_answer * shape.hidden * n_bytes)
    beside = prompt.n_tokens * (2.0 * shape.head_dim * n_bytes + 16)  # rotary tables, masks, ranks
    return Need(_pass(shape, prompt, n_bytes) + states, states + answer + beside, "on disk")


def of_probes(loaded: Loaded, prompt: LongestPrompt) -> Need:
    """The need of a calibration, which keeps the states and keys of every layer."""
    # With b bytes a number: S * (L * (D + key width) + D + rotary tables) * b for the states, and
    # L * T * N numbers in float32 for the attention of T text tokens to N visual tokens.
    shape, n_bytes = loaded.shape, loaded.model.dtype.itemsize
    width = shape.hidden + shape.n_kv_heads * shape.head_dim
    numbers = float(shape.n_layers * width + shape.hidden + 2 * shape.head_dim)  # rotary tables
    states = prompt.n_tokens * (numbers * n_bytes + 16)  # 16 for masks and ranks
    n_text = prompt.n_tokens - prompt.n_visual
    looks = float(shape.n_layers * n_text * prompt.n_visual * 4)
    kept = states + looks
    return Need(_pass(shape, prompt, n_bytes) + kept, kept, "recorded again in every round")


def of_answers(loaded: Loaded, prompt: LongestPrompt, n_new: int) -> Need:
    """The need of answers of up to ``n_new`` tokens, whose cache holds the keys of every layer."""
    shape, n_bytes = loaded.shape, loaded.model.dtype.itemsize
    cache = kv_bytes(shape, [prompt.n_tokens + n_new] * shape.n_layers)
    one = replace(prompt, n_answer=1)  # the output head runs on one token at a time
    return Need(_pass(shape, one, n_bytes) + cache, 0.0, "")


def _pass(shape: DecoderShape, prompt: LongestPrompt, n_bytes: int) -> float:
    """Bytes that one layer, one selector and the output head hold at once, an upper estimate."""
    # layer: residual and normalised states, the feed-forward's three widths, queries, keys and
    # values; masks: S * S, as booleans and in the model's precision; selector: the tokens and all
    # pairs of them; head: A * V numbers of two runs, as logits and as logarithms.
    n, visual = prompt.n_tokens, prompt.n_visual
    heads = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
    layer = n * n_bytes * (4.0 * shape.hidden + 3.0 * shape.ffn + 2.0 * heads)
    masks = n * n * (3.0 + n_bytes)
    selector = 8.0 * visual * (shape.hidden + visual)  # directions and pairs, in float64
    head = 16.0 * prompt.n_answer * shape.vocab  # logits and logs in float32, full and pruned
    return layer + masks + selector + head


def arranged(
    loaded: Loaded, need: Need, n_kept: int, batch_size: int, limit: int | None
) -> Arranged:
    """A batch size and a store that keep to the available memory.

    Args:
        loaded: The model, on its device.
        need: The need of one sample.
        n_kept: Number of samples whose recordings are kept.
        batch_size: Largest batch size to use.
        limit: Largest number of bytes on the device, including the model's weights; None takes
            what is free.

    Raises:
        UsageError: The limit leaves no room for one sample.
    """
    # Free memory does not include the weights, which are loaded already; a limit includes them.
    # The batch is as large as fits: floor(room for work / work of one sample).
    device = device_of(loaded.model)
    weights = sum(p.nbytes for p in loaded.model.parameters() if p.device.type == device.type)
    room = _FREE * _free(device) if limit is None else float(limit - weights)
    on_host = device.type == "cpu"  # there, batches and what is kept share one memory
    work = room * (1 - _KEPT) if on_host else room
    kept = max(0.0, room * _KEPT if on_host else _FREE * _free_host() * _KEPT)
    if limit is not None and work < need.work:
        least = weights + need.work / (1 - _KEPT if on_host else 1)
        raise UsageError(
            f"--memory must be at least about {gigabytes(least)} for this model and these "
            f"samples; got {gigabytes(limit)}."
        )
    size = max(1, min(batch_size, int(work // need.work)))
    said = [
        f"Memory: about {gigabytes(weights + size * need.work)} on {device} in batches of {size}, "
        f"{gigabytes(weights)} of it for the weights"
    ]
    if n_kept:
        said.append(
            f"{gigabytes(min(kept, n_kept * need.kept))} of the host's for {n_kept} samples"
        )
    if n_kept * need.kept > kept:
        said.append(f"{gigabytes(n_kept * need.kept - kept)} {need.beyond}")
    return Arranged(size, Store(kept), f"{'; '.join(said)}.")


def _free(device: torch.device) -> float:
    """Free bytes, including those that torch has reserved and does not use."""
    if device.type != "cuda":
        return _free_host()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def _free_host() -> float:
    """This process's share of the host's free memory, if several were started together."""
    return free_memory()["cpu"] / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
