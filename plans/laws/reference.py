"""The reference for the executor: the unpruned model with dropped tokens hidden by masks.

It runs without a cache and computes every token in every layer. Only the attention mask that the
model passes to a layer is changed, so that sliding windows, chunks, prefixes and bidirectional
blocks remain as the model defines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from tpcal.plans.executor.architecture import flash_layers
from tpcal.plans.executor.attention_reader import probing
from tpcal.plans.executor.kernels import FlashLayer, is_flash
from tpcal.plans.executor.masks import FlashOrder, mask_rows
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.families import find


def hidden_tokens(visual: Tensor, cuts: Sequence[CutRecord], n_layers: int) -> Tensor:
    """[L, B, S] bool, True for tokens that were dropped before the layer.

    Args:
        visual: [B, S] bool, True at visual tokens.
        cuts: The kept tokens of each cut, in order.
        n_layers: Number of layers, L.
    """
    hidden = torch.zeros(n_layers, *visual.shape, dtype=torch.bool, device=visual.device)
    for cut in cuts:
        for row, ranks in enumerate(cut.kept):
            gone = visual[row].clone()
            gone[visual[row].nonzero()[list(ranks), 0]] = False
            hidden[cut.layer :, row] |= gone
    return hidden


@contextmanager
def hiding(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """The model with tokens hidden from the queries of later layers.

    Args:
        model: The model; no plan may be applied.
        hidden: [L, B, S] bool. Tokens after S are hidden from no layer. If a batch has a multiple
            of B rows, each row applies to that many neighbouring rows (beams).
    """
    family = find(model)
    layers = family.layers(model)
    kernel = model.config.get_text_config(decoder=True)._attn_implementation
    flash = flash_layers(family, model) if is_flash(kernel) else {}
    with ExitStack() as undo:
        # No flash kernel hides a token from some queries; another kernel stands in for it.
        undo.enter_context(probing({}, {at: family.attention(layers[at]) for at in flash}))
        for at, layer in enumerate(layers):
            hook = _hook(hidden[family.key_source(model, at)], flash.get(at))
            undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _hook(hidden: Tensor, flash: FlashLayer | None) -> Any:
    def before_layer(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        if flash is not None:
            n_rows, n = states.shape[:2]
            columns = torch.arange(n, device=states.device).expand(n_rows, -1)
            order = FlashOrder(mask, flash.window, flash.causal)
            mask = mask_rows(order, columns, n, n)
            mask = mask.expand(n_rows, -1, -1)[:, None]
        return args, {**kwargs, "attention_mask": hide(mask, hidden, states)}

    return before_layer


def hide(mask: Any, hidden: Tensor, states: Tensor) -> Any:
    """The layer's own mask, changed so that no token attends to a hidden token except itself.

    Args:
        mask: [1 or B, 1, Q, S] bool or additive, or a block mask; None means causal.
        hidden: [B', S'] bool as in `hiding`.
        states: [B, Q, D] input of the layer.

    Returns:
        [B, 1, Q, S] mask of the same kind. Every query attends to itself, because a softmax over
        no keys is not a number.
    """
    n_rows, n_queries = states.shape[:2]
    if mask is None:
        causal = torch.ones(n_queries, n_queries, dtype=torch.bool, device=states.device).tril()
        mask = torch.where(causal, 0.0, torch.finfo(states.dtype).min).to(states.dtype)[None, None]
    if len(mask.shape) != 4:
        raise NotImplementedError(
            f"A layer's mask must have 4 dimensions to hide tokens; got {len(mask.shape)}."
        )
    n_keys = mask.shape[-1]
    gone = hidden.repeat_interleave(n_rows // hidden.shape[0], dim=0)
    gone = torch.nn.functional.pad(gone, (0, n_keys - gone.shape[1]))[:, None, None]
    if isinstance(mask, BlockMask):
        return _hidden_in_blocks(mask, gone[:, 0, 0], n_queries)
    place = torch.arange(n_keys, device=mask.device)
    own = place == place[n_keys - n_queries :, None]  # [Q, S]
    if mask.dtype == torch.bool:
        return mask & ~gone | own
    return mask.masked_fill(gone, torch.finfo(mask.dtype).min).masked_fill(own, 0.0)


def _hidden_in_blocks(mask: BlockMask, gone: Tensor, n_queries: int) -> BlockMask:
    n_rows, n_keys = gone.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        itself = key == query + (n_keys - n_queries)
        return mask.mask_mod(row, head, query, key) & ~gone[row, key] | itself

    return create_block_mask(sees, n_rows, None, n_queries, n_keys, device=gone.device)
