"""Laws about generate: beams, samples and drafts give the tokens that the reference gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpcal.plans.executor.handle import Report, apply
from tpcal.plans.laws.case import Inputs
from tpcal.plans.laws.outcomes import Broken, Inapplicable
from tpcal.plans.laws.reference import hidden_tokens, hiding, mergings
from tpcal.plans.laws.trial import N_TOKENS, Trial, special_ids
from tpcal.plans.plan_records import Plan

_N_ROWS = 3
_BEAMS = {"num_beams": 3, "num_return_sequences": 2}
_SAMPLES = {"do_sample": True, "top_k": 0, "num_return_sequences": 2}


def greedy(trial: Trial) -> str:
    """`generate` gives the most likely tokens of the reference, in a batch and for rows alone."""
    plan = trial.plans["content"]
    _exact(trial)
    trial.maskable()
    stock = trial.generate(trial.left)
    if not torch.equal(stock, _most_likely(trial, stock, None)):
        raise Inapplicable("the unpruned model's own tokens are not its most likely ones")
    with apply(trial.model, plan, check=False) as handle:
        tokens, report = trial.generate(trial.left), handle.last
        alone = [trial.generate(row)[0, -N_TOKENS:].tolist() for row in trial.case.rows]
    wanted = _most_likely(trial, tokens, report)
    if not torch.equal(tokens, wanted):
        raise Broken(f"got {_new(tokens)}, the reference {_new(wanted)}")
    if alone != _new(tokens):
        raise Broken(f"got {_new(tokens)} in the batch, {alone} alone")
    return f"{tokens.shape[0]} sequences of {N_TOKENS} tokens equal the reference, and alone"


def beams(trial: Trial) -> str:
    """Beam search finds the sequences of beam search on the reference."""
    plan, inputs = trial.plans["content"], _some(trial)
    try:
        _require_stock(trial, inputs, _BEAMS)
    except Inapplicable as reason:
        return _beams_alone(trial, plan, str(reason))
    return _equal_to_reference(trial, plan, inputs, _BEAMS)


def samples(trial: Trial) -> str:
    """With the same seed, several samples of each prompt are those of the reference."""
    plan, inputs = trial.plans["content"], _some(trial)
    _require_stock(trial, inputs, _SAMPLES)
    return _equal_to_reference(trial, plan, inputs, _SAMPLES)


def drafts(trial: Trial) -> str:
    """Prompt lookup, which crops the cache after wrong drafts, gives greedy search's tokens."""
    _exact(trial)
    trial.repeatable()  # otherwise a draft sees the drafts behind it
    words = trial.words(1, 6)
    prompt = trial.case.rows[trial.with_images[0]]
    inputs = trial.case.extended(prompt, torch.cat([words, words[:, :2]], dim=1))
    n = 6
    wanted = _stock(trial, inputs, {"n_tokens": n})
    stock = _stock(trial, inputs, {"n_tokens": n, "prompt_lookup_num_tokens": 2})
    if not torch.equal(wanted, stock):
        raise Inapplicable("the unpruned model's own drafts give other tokens")
    # Selection by attention shows whether a draft is asked instead of the prompt's last token.
    names = [name for name in ("content", "attention") if name in trial.plans]
    for name in names:
        with apply(trial.model, trial.plans[name], check=False):
            greedy = trial.generate(inputs, n)
            drafted = trial.generate(inputs, n, prompt_lookup_num_tokens=2)
        if not torch.equal(greedy, drafted):
            got, wanted = drafted[0, -n:].tolist(), greedy[0, -n:].tolist()
            raise Broken(f"plan {name}: greedy {wanted}, with drafts {got}")
    return f"{n} tokens equal under {' and '.join(names)}"


def _equal_to_reference(trial: Trial, plan: Plan, inputs: Inputs, options: dict[str, Any]) -> str:
    """Compares a search with the same search on the masked model, which has no cache."""
    with apply(trial.model, plan, check=False) as handle:
        tokens = _tokens(trial, inputs, **options)
    assert handle.last is not None
    cuts, visual = handle.last.cuts, trial.visual(inputs)
    n_copies = max(1, len(cuts[0].kept) // len(visual))
    visual = visual.repeat_interleave(n_copies, 0)
    hidden = hidden_tokens(visual, cuts, trial.n_layers)
    with hiding(trial.model, hidden, mergings(visual, handle.last, plan)):
        wanted = _tokens(trial, inputs, use_cache=False, **options)
    if not torch.equal(tokens, wanted):
        raise Broken(f"found {tokens.tolist()}, the reference {wanted.tolist()}")
    return f"{len(tokens)} sequences of {tokens.shape[1]} tokens equal the reference"


def _beams_alone(trial: Trial, plan: Plan, why: str) -> str:
    """Compares the beams of a batch with those of its rows, if no stronger test is possible."""
    rows = [trial.case.rows[at] for at in _fewest_images(trial)]
    n = _BEAMS["num_return_sequences"]
    _exact(trial)
    unpruned = _stock(trial, trial.case.batch(rows), _BEAMS)
    with apply(trial.model, plan, check=False):
        together = _tokens(trial, trial.case.batch(rows), **_BEAMS)
        alone = torch.cat([_tokens(trial, row, **_BEAMS) for row in rows])
    if not torch.equal(together, alone):
        raise Broken(f"found {together.tolist()} in a batch, {alone.tolist()} alone")
    if torch.equal(together, unpruned):
        raise Broken("the plan changed nothing, so equality shows nothing")
    return f"{len(rows)} rows of {n} sequences equal the rows alone; no reference, as {why}"


def _require_stock(trial: Trial, inputs: Inputs, options: dict[str, Any]) -> None:
    """Raises Inapplicable if the unpruned model finds other tokens with a cache than without."""
    _exact(trial)
    trial.maskable()
    cached = _stock(trial, inputs, options)
    whole = _stock(trial, inputs, {**options, "use_cache": False})
    if not torch.equal(cached, whole):
        raise Inapplicable("the unpruned model gives other tokens without a cache")


def _stock(trial: Trial, inputs: Inputs, options: dict[str, Any]) -> Tensor:
    """[B', n] new tokens of the unpruned model; raises Inapplicable if it cannot generate them."""
    try:
        return _tokens(trial, inputs, **options)
    except Exception as error:
        how = " without a cache" if options.get("use_cache") is False else ""
        line = str(error).partition("\n")[0]
        reason = f"the unpruned model cannot{how}: {type(error).__name__}: {line}"
        raise Inapplicable(reason) from error


def _tokens(trial: Trial, inputs: Inputs, **options: Any) -> Tensor:
    """[B', n] new tokens, always from the same seed."""
    device = trial.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        sequences = trial.generate(inputs, **options)
    return sequences[:, inputs["input_ids"].shape[1] :]


def _most_likely(trial: Trial, tokens: Tensor, report: Report | None) -> Tensor:
    """The sequences [B, S], with the last `N_TOKENS` tokens chosen by the reference."""
    new = tokens[:, -N_TOKENS:]
    whole = trial.case.extended(trial.left, new)
    cuts = report.cuts if report else ()
    visual = trial.visual(whole)
    hidden = hidden_tokens(visual, cuts, trial.n_layers)
    merging = mergings(visual, report, trial.plans["content"])
    logits = trial.masked(whole, hidden, merging)[:, -N_TOKENS - 1 : -1].clone()
    logits[..., special_ids(trial.model)] = -torch.inf
    return torch.cat([tokens[:, :-N_TOKENS], logits.argmax(-1)], dim=1)


def _new(tokens: Tensor) -> list[list[int]]:
    return tokens[:, -N_TOKENS:].tolist()


def _some(trial: Trial) -> dict[str, Tensor]:
    return trial.case.batch([trial.case.rows[at] for at in _fewest_images(trial)])


def _fewest_images(trial: Trial) -> list[int]:
    """The prompts with the fewest visual tokens.

    For beams, some models of transformers repeat the images of a prompt with several images in the
    wrong order, with or without a plan.
    """
    return sorted(range(len(trial.case.rows)), key=trial.n_visual.__getitem__)[:_N_ROWS]


def _exact(trial: Trial) -> None:
    if not trial.is_exact:
        raise Inapplicable("a near tie of two tokens can turn in this precision or on this device")
