"""Hooks on layers that come and go."""

from __future__ import annotations

from torch import nn

from tpcal.plans.executor.hooks import LayerHooks


def test_hooks_are_there_while_they_are_needed_and_come_first():
    layers, calls = nn.ModuleList([nn.Identity(), nn.Identity()]), []
    layers[1].register_forward_pre_hook(lambda *_: calls.append("another"))
    hooks = LayerHooks(layers, lambda at: lambda *_: calls.append(at))
    layers[1](0)
    hooks.set(True)
    hooks.set(True)
    for layer in layers:
        layer(0)
    hooks.set(False)
    layers[1](0)
    assert calls == ["another", 0, 1, "another", "another"]
    assert not layers[0]._forward_pre_hooks
