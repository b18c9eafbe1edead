"""Hooks on layers that come and go."""

from __future__ import annotations

from torch import nn

from tpcal.plans.executor.hooks import LayerHooks


class Pass:
    """Stands for a pass."""


def test_hooks_are_there_while_a_pass_needs_them_and_come_first():
    layers, calls = nn.ModuleList([nn.Identity(), nn.Identity()]), []
    layers[1].register_forward_pre_hook(lambda *_: calls.append("another"))
    hooks = LayerHooks(layers, lambda at: lambda *_: calls.append(at))
    first, second = Pass(), Pass()
    layers[1](0)
    hooks.prepare(first, needed=True)
    hooks.prepare(second, needed=True)
    for layer in layers:
        layer(0)
    hooks.spare(second)
    hooks.prepare(second, needed=False)  # the first one runs on
    assert len(layers[0]._forward_pre_hooks) == 1
    hooks.spare(first)
    hooks.prepare(second, needed=False)
    layers[1](0)
    assert calls == ["another", 0, 1, "another", "another"]
    assert not layers[0]._forward_pre_hooks


def test_hooks_that_a_killed_pass_needed_go_with_it():
    layers = nn.ModuleList([nn.Identity()])
    hooks = LayerHooks(layers, lambda at: lambda *_: None)
    killed = Pass()
    hooks.prepare(killed, needed=True)
    del killed
    hooks.prepare(Pass(), needed=False)
    assert not layers[0]._forward_pre_hooks
