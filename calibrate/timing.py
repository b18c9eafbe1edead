"""Milliseconds of a decoder layer against its token count, measured on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from tpcal.plans.families import find

N_POINTS = 8
N_REPEATS = 7


def layer_ms(
    model: Any, counts: Sequence[int], *, n_repeats: int = N_REPEATS
) -> tuple[tuple[int, float], ...]:
    """(tokens, milliseconds) of one decoder layer, batch size 1, no cache.

    The whole decoder is timed and divided by its layers, so its embedding, last norm and masks are
    in.
    Medians of interleaved repeats, because a machine's speed drifts.

    Args:
        model: The model, on the device to measure.
        counts: Token counts to measure at.
        n_repeats: Repeats, after one to warm up.
    """
    family = find(model)
    decoder = family.decoder(model)
    n_words = model.get_input_embeddings().weight.shape[0]
    inputs = {
        n: (torch.arange(n, device=model.device) % n_words)[None]
        for n in sorted({max(1, n) for n in counts})
    }
    times: dict[int, list[float]] = {n: [] for n in inputs}
    with torch.inference_mode():
        for repeat in range(n_repeats + 1):
            for n, ids in inputs.items():
                started = _now(model.device)
                decoder(input_ids=ids, use_cache=False)
                if repeat:
                    times[n].append((_now(model.device) - started) * 1000)
    n_layers = len(family.layers(model))
    return tuple((n, statistics.median(ms) / n_layers) for n, ms in times.items())


def counts_to_time(n_tokens: int, n_text: int, n_points: int = N_POINTS) -> list[int]:
    """Token counts from text only to all visual tokens, evenly spaced."""
    steps = range(n_points)
    return sorted({max(1, n_text + round(n_tokens * i / (n_points - 1))) for i in steps})


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
