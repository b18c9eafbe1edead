"""Laws about what must not change: a plan that keeps everything, and a plan that was removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.handle import Handle, apply, is_applied
from tpcal.plans.laws.outcomes import Broken
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan


def keep_all(trial: Trial) -> str:
    """A plan that keeps every token changes no bit of the logits of a pass or of `generate`."""
    plan = Plan(
        tuple(Cut(c.layer, 1.0, c.selector or "random") for c in _scored(trial).cuts),
    )
    before = [trial.unpruned("left").logits, trial.unpruned("right").logits]
    options = {"return_dict_in_generate": True, "output_logits": True}
    generated = trial.generate(trial.left, **options)
    with apply(trial.model, plan):
        after = [trial.forward(trial.left).logits, trial.forward(trial.right).logits]
        again = trial.generate(trial.left, **options)
    for side, one, two in zip(("left", "right"), before, after, strict=True):
        _require_equal(one, two, f"padded on the {side}, the logits")
    if not torch.equal(generated.sequences, again.sequences):
        raise Broken("generate gave other tokens")
    for step, (one, two) in enumerate(zip(generated.logits, again.logits, strict=True)):
        _require_equal(one, two, f"step {step} of generate, the logits")
    n = sum(logits.numel() for logits in (*before, *generated.logits))
    return f"{n} logits equal bit by bit"


def text_only(trial: Trial) -> str:
    """A prompt without an image runs as if no plan were applied, bit by bit."""
    row = str(trial.n_visual.index(0))
    plan = "attention" if "attention" in trial.plans else "content"
    before = trial.unpruned(row).logits
    _require_equal(before, trial.pruned(plan, row).logits, "the logits")
    return f"{before.numel()} logits equal bit by bit"


def removed(trial: Trial) -> str:
    """Removing the handle restores the model: hooks, attributes, configs and logits."""
    before, state = trial.unpruned("left").logits, snapshot(trial.model)
    n = trial.left["input_ids"].shape[1]
    with apply(trial.model, _scored(trial)) as handle:  # an error must not leave the plan on
        pruned = trial.model(**_inputs(trial)).logits
    if torch.equal(pruned, before[:, :n]):
        raise Broken("the applied plan changed nothing, so nothing was restored")
    handle.remove()
    _require_restored(trial, state)
    _require_equal(before[:, :n], trial.model(**_inputs(trial)).logits, "afterwards the logits")
    return f"{len(state)} modules as before, {before[:, :n].numel()} logits equal bit by bit"


def failed(trial: Trial) -> str:
    """An error inside a forward pass leaves a working handle and a model that can be restored."""
    state = snapshot(trial.model)
    layers = trial.family.layers(trial.model)
    plan = _scored(trial)
    failing = [plan.cuts[0].layer - 1, plan.cuts[0].layer, plan.cuts[-1].layer]
    with apply(trial.model, plan) as handle:
        wanted = trial.model(**_inputs(trial)).logits
        for at in failing:
            for module in (layers[at], trial.family.attention(layers[at])):
                _fail(module, lambda: trial.model(**_inputs(trial)))
            again = trial.model(**_inputs(trial)).logits
            _require_equal(wanted, again, f"after an error in layer {at} the logits")
    _require_restored(trial, state)
    before = trial.unpruned("left").logits[:, : wanted.shape[1]]

    def run_and_fail() -> None:
        with apply(trial.model, plan) as inner:
            assert inner is not handle
            trial.model(**_inputs(trial))

    _fail(layers[failing[1]], run_and_fail)
    _require_restored(trial, state)
    _require_equal(before, trial.model(**_inputs(trial)).logits, "afterwards the logits")
    return f"{2 * len(failing) + 1} errors raised in layers {failing}; logits equal bit by bit"


def nested(trial: Trial) -> str:
    """A second plan on the same model raises a clear error, and the first plan stays."""
    plans = list(trial.plans.values())
    state = snapshot(trial.model)
    with apply(trial.model, plans[0], check=False):
        inside = snapshot(trial.model)
        message = _refusal(lambda: apply(trial.model, plans[-1], check=False))
        if "one plan" not in message:
            raise Broken(f"the error does not say why: {message}")
        if snapshot(trial.model) != inside:
            raise Broken("the refused plan left something on the model")
    _require_restored(trial, state)
    return message


def training(trial: Trial) -> str:
    """In training mode, with or without gradient checkpointing, a plan raises a clear error."""
    model = trial.model
    modes = {module: module.training for module in model.modules()}
    checkpoints = model.supports_gradient_checkpointing and not compat.is_checkpointing(model)
    message = ""
    try:
        for with_checkpoints in (False, True) if checkpoints else (False,):
            model.train()
            if with_checkpoints:
                compat.set_checkpointing(model, True)
            with apply(model, trial.plans["content"], check=False):
                message = _refusal(lambda: model(**_inputs(trial)))
            if "evaluation mode" not in message:
                raise Broken(f"the error does not say why: {message}")
    finally:
        for module, mode in modes.items():
            module.training = mode
        if checkpoints:
            compat.set_checkpointing(model, False)
    return message


def snapshot(model: PreTrainedModel) -> list[Any]:
    """Everything of each module that a handle might change."""
    return [
        (
            type(module),
            sorted(vars(module)),
            id(getattr(module, "config", None)),
            [id(hook) for hook in module._forward_pre_hooks.values()],
            [id(hook) for hook in module._forward_hooks.values()],
            len(module._forward_hooks_always_called),
            len(module._forward_pre_hooks_with_kwargs),
        )
        for module in model.modules()
    ]


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    """The module raises when it is called."""

    def fail(module: nn.Module, args: Any) -> None:
        raise _Planted

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


class _Planted(Exception):
    """Error that is raised inside a forward pass on purpose."""


def _fail(module: nn.Module, run: Callable[[], Any]) -> None:
    with failing(module):
        try:
            run()
        except _Planted:
            return
    raise Broken("an error inside a forward did not reach the caller")


def _refusal(run: Callable[[], Any]) -> str:
    """The message of the UsageError."""
    try:
        done = run()
    except UsageError as error:
        return str(error)
    if isinstance(done, Handle):
        done.remove()
    raise Broken("it was not refused")


def _inputs(trial: Trial) -> dict[str, Any]:
    return {**trial.left, "position_ids": trial.case.numbered(trial.left)}


def _scored(trial: Trial) -> Plan:
    return trial.plans.get("attention", trial.plans["content"])


def _require_equal(one: torch.Tensor, two: torch.Tensor, what: str) -> None:
    if not torch.equal(one, two):
        found = float((one.float() - two.float()).abs().max()) if one.shape == two.shape else None
        raise Broken(f"{what} differ: largest difference {found} (allowed 0)")


def _require_restored(trial: Trial, state: list[Any]) -> None:
    names = [name for name, _ in trial.model.named_modules()]
    changed = [
        name
        for name, was, now in zip(names, state, snapshot(trial.model), strict=True)
        if was != now
    ]
    if changed or is_applied(trial.model):
        raise Broken(f"the model was not restored: {', '.join(changed[:3]) or 'still applied'}")
