"""The reference for the executor: the unpruned model with dropped tokens hidden by masks.

It runs without a cache and computes every token in every layer. Only the attention mask that the
model passes to a layer is changed, so that sliding windows, chunks, prefixes and bidirectional
blocks remain as the model defines them. If tokens are merged, the states that enter the layer of a
cut are changed too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from tpcal.plans.executor.architecture import flash_layers
from tpcal.plans.executor.attention_reader import probing
from tpcal.plans.executor.kernels import FlashLayer, is_flash
from tpcal.plans.executor.masks import FlashOrder, mask_rows
from tpcal.plans.executor.report import CutRecord, Report
from tpcal.plans.families import find
from tpcal.plans.plan_records import PROPORTIONAL, Plan


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


class Merging:
    """Merges the dropped tokens of a prompt into those that stay, one row and set after another.

    Args:
        visual: [B, S] bool, True at the prompt's visual tokens.
        report: What the executor kept.
        plan: The plan that it carried out, with ``merge``.
    """

    def __init__(self, visual: Tensor, report: Report, plan: Plan) -> None:
        self._report, self._plan, self._visual = report, plan, visual
        self._places = [row.nonzero()[:, 0] for row in visual]
        self._sizes: dict[int, Tensor] = {}
        self._alive: list[set[int]] = []

    def log_sizes(self, layer: int) -> Tensor:
        """[B, S] what attention at a layer adds to the logits of keys."""
        sizes = self._sizes[max(at for at in self._sizes if at <= layer)]
        return sizes.log() if self._plan.merge == PROPORTIONAL else torch.zeros_like(sizes)

    def merged(self, layer: int, states: Tensor) -> Tensor:
        """[B, S, D] the states that enter a layer, changed if the plan cuts before it."""
        if layer == 0:  # a pass begins
            first = torch.ones(self._visual.shape, dtype=torch.float64, device=states.device)
            self._sizes = {-1: first}
            self._alive = [set(range(n)) for n in self._report.n_visual]
        cuts = [cut for cut in self._report.cuts if cut.layer == layer]
        if not cuts:
            return states
        sizes = self._sizes[max(self._sizes)].clone()
        states = states.clone()
        for row, kept in enumerate(cuts[0].kept):
            for own in self._sets(row):
                stay = sorted(own & set(kept))
                leave = sorted((own & self._alive[row]) - set(kept))
                if stay and leave:
                    self._merge(row, stay, leave, states[row, : sizes.shape[1]], sizes[row])
            self._alive[row] = set(kept)
        self._sizes[layer] = sizes
        return states

    def _sets(self, row: int) -> list[set[int]]:
        """The ranks of the tokens that can be merged with each other."""
        sizes = self._report.image_sizes[row] if self._plan.scope == "image" else ()
        ends = accumulate(sizes or (self._report.n_visual[row],))
        return [set(range(start, end)) for start, end in pairwise([0, *ends])]

    def _merge(
        self, row: int, stay: list[int], leave: list[int], states: Tensor, sizes: Tensor
    ) -> None:
        """Changes the states [S, D] and sizes [S] of a row."""
        kept, gone = self._places[row][stay], self._places[row][leave]
        unit = normalize(states.double(), dim=-1)
        apart = ((1 - unit[gone] @ unit[kept].T) * 2**18).round()
        into = kept[apart.argmin(dim=1)]
        total = (states.double() * sizes[:, None]).index_add(
            0, into, states[gone].double() * sizes[gone, None]
        )
        changed = into.unique()
        sizes.index_add_(0, into, sizes[gone])
        states[changed] = (total[changed] / sizes[changed, None]).to(states.dtype)


def mergings(visual: Tensor, report: Report | None, plan: Plan) -> tuple[Merging, ...]:
    """What merges the dropped tokens of a prompt [B, S]; nothing if the plan merges none."""
    if report is None or plan.merge is None or not visual.any():
        return ()
    return (Merging(visual, report, plan),)


@contextmanager
def hiding(
    model: PreTrainedModel, hidden: Tensor, mergings: Sequence[Merging] = ()
) -> Iterator[None]:
    """The model with tokens hidden from the queries of later layers.

    Args:
        model: The model; no plan may be applied.
        hidden: [L, B, S] bool. Tokens after S are hidden from no layer. If a batch has a multiple
            of B rows, each row applies to that many neighbouring rows (beams).
        mergings: Merge the hidden tokens of each prompt of a conversation into others; then all
            tokens must run in every pass. Empty: they are dropped.
    """
    family = find(model)
    layers = family.layers(model)
    kernel = model.config.get_text_config(decoder=True)._attn_implementation
    flash = flash_layers(family, model) if is_flash(kernel) else {}
    with ExitStack() as undo:
        # No flash kernel hides a token from some queries; another kernel stands in for it.
        undo.enter_context(probing({}, {at: family.attention(layers[at]) for at in flash}))
        for at, layer in enumerate(layers):
            source = family.key_source(model, at)
            hook = _hook(_Layer(at, source, hidden[source], flash.get(at), mergings))
            undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


class _Layer(NamedTuple):
    """What happens at a layer."""

    number: int
    source: int
    """The layer whose keys it reads."""
    hidden: Tensor
    """[B, S] bool."""
    flash: FlashLayer | None
    mergings: Sequence[Merging]


def _hook(layer: _Layer) -> Any:
    hidden, flash = layer.hidden, layer.flash

    def before_layer(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        for merging in layer.mergings:
            states = merging.merged(layer.number, states)
        if args:
            args = (states, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": states}
        if flash is not None:
            n_rows, n = states.shape[:2]
            columns = torch.arange(n, device=states.device).expand(n_rows, -1)
            order = FlashOrder(mask, flash.window, flash.causal)
            mask = mask_rows(order, columns, n, n)
            mask = mask.expand(n_rows, -1, -1)[:, None]
        mask = hide(mask, hidden, states)
        for merging in layer.mergings:
            mask = _counted(mask, merging.log_sizes(layer.source), states)
        return args, {**kwargs, "attention_mask": mask}

    return before_layer


def _counted(mask: Tensor | BlockMask, added: Tensor, states: Tensor) -> Tensor:
    """The mask [B, 1, Q, K] with what is added [B, S] to the logits of the keys."""
    if isinstance(mask, BlockMask):  # a function of places, which flex attention cannot add
        rows, heads, queries, keys = mask.shape
        mask = create_mask(mask.mask_mod, rows, heads, queries, keys, device=str(states.device))
    if mask.dtype == torch.bool:
        none = torch.zeros(mask.shape, dtype=states.dtype, device=mask.device)
        mask = none.masked_fill(~mask, torch.finfo(states.dtype).min)
    n_more = mask.shape[-1] - added.shape[1]
    return mask + torch.nn.functional.pad(added, (0, n_more))[:, None, None].to(mask.dtype)


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
