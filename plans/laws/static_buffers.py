"""The law about static caches, whose buffers have fixed sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, StaticCache

from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.kernels import is_flash
from tpcal.plans.laws.outcomes import Inapplicable
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import N_STEPS, Trial

_N_WORDS = 3


def static_cache(trial: Trial) -> str:
    """With a static cache, prefill, steps and a turn of text give a dynamic cache's logits."""
    if is_flash(trial.model.config.get_text_config(decoder=True)._attn_implementation):
        raise Inapplicable("a static cache goes with the kernels sdpa and eager only")
    _require_stock(trial)
    found = []
    for plan in trial.plans.values():
        with apply(trial.model, plan, check=False):
            difference = distance(*(_conversation(trial, cache) for cache in _caches(trial)))
        found.append(trial.require_close(difference, "static and dynamic cache"))
    return trial.within(found)


def _caches(trial: Trial) -> tuple[Cache, Cache]:
    """A dynamic and a static cache that has just enough room."""
    room = trial.left["input_ids"].shape[1] + N_STEPS + _N_WORDS + 1
    return trial.empty_cache(), StaticCache(config=trial.model.config, max_cache_len=room)


def _conversation(trial: Trial, cache: Cache) -> Tensor:
    """[n, V] logits at text of a prefill, steps, a turn of text and one more step."""
    run = trial.forward(trial.left, cache=cache)
    n_rows = len(trial.left["input_ids"])
    logits, so_far = [run.logits], trial.case.extended(trial.left, trial.words(n_rows))
    for n, start in ((_N_WORDS, N_STEPS), (1, N_STEPS + _N_WORDS)):
        words = trial.words(n_rows, n, start)
        so_far = trial.case.extended(so_far, words)
        logits.append(trial.step(words, so_far, cache))
    return trial.at_text(trial.left, torch.cat(logits, dim=1))


def _require_stock(trial: Trial) -> None:
    """Raises Inapplicable if the unpruned model itself cannot run with a static cache."""
    try:
        difference = distance(*(_conversation(trial, cache) for cache in _caches(trial)))
    except Exception as error:
        line = str(error).partition("\n")[0]
        reason = f"the unpruned model cannot: {type(error).__name__}: {line}"
        raise Inapplicable(reason) from error
    if not difference <= trial.allowed:
        raise Inapplicable(f"the unpruned model's own logits differ by {difference:.1e}")
