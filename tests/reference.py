"""The mask-based reference: the unpruned model, from whose layers dropped tokens are hidden. No cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from models import IMAGE
from torch import Tensor, nn


def hidden_from(
    ids: Tensor, cuts: Sequence[tuple[int, Sequence[Sequence[int]]]], n_layers: int
) -> Tensor:
    """[L, B, S] True where a token is hidden from a layer.

    Args:
        ids: [B, S].
        cuts: (layer, original ranks kept per row) in order.
        n_layers: L.
    """
    hidden = torch.zeros(n_layers, *ids.shape, dtype=torch.bool)
    for layer, kept in cuts:
        for row, ranks in enumerate(kept):
            places = (ids[row] == IMAGE).nonzero()[:, 0]
            gone = torch.ones(len(places), dtype=torch.bool)
            gone[list(ranks)] = False
            hidden[layer:, row, places[gone]] = True
    return hidden


@contextmanager
def hiding(layers: nn.ModuleList, hidden: Tensor, real: Tensor) -> Iterator[None]:
    """Layers that see neither padding nor what is hidden from them."""
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)

    def hook(layer: int):
        def before(module, args, kwargs):
            sees = causal & (real & ~hidden[layer])[:, None, :] | own
            dtype = args[0].dtype
            bias = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
            return args, {**kwargs, "attention_mask": bias[:, None]}

        return before

    hooks = [
        layer.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def positions_of(real: Tensor) -> Tensor:
    """[B, S] positions as `generate` numbers them."""
    return (real.long().cumsum(-1) - 1).clamp(min=0)


def class_attention(model: nn.Module, pixels: Tensor) -> Tensor:
    """[images, N, 1 + d] attention of CLIP's class token and mean keys, last layer but one."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    layer = tower.encoder.layers[-2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[-3]))
    keys = keys.unflatten(-1, (layer.self_attn.num_heads, -1)).mean(2)
    return torch.cat([out.attentions[-2].mean(1)[:, 0, :, None], keys], -1)[:, 1:]
