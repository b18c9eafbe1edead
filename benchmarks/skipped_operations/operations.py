"""Operations of a decoder layer that visual tokens skip: their cost, and what the answer loses.

A visual token takes part in a layer by three operations:

    ffn       its feed-forward; skipped, the residual passes unchanged
    queries   its own reading; skipped, nothing is added to it from the attention
    read      being read by text; skipped, no text token attends to it in this layer

Its keys and values are needed as long as anyone reads them, so that their projections are saved
only where ``queries`` and ``read`` are both skipped. A layer without all three is as if the tokens
had been dropped before it and came back after it.

Source:
    Liu et al. 2025 (arXiv 2507.02909v1) call the same three MLP, MHA-in and MHA-out. They divide
    the tokens into groups that skip apart; here all visual tokens of a layer skip together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.replayed_questions import Losses, ReplayedQuestions, seen
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.budget_projection import project, spent
from tpcal.plans.cost import DecoderShape, kv_bytes, layer_flops, plan_cost, prefill_flops
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut, Cuts, Plan

FFN, QUERIES, READ = "ffn", "queries", "read"
Skips = frozenset[tuple[int, str]]
"""Pairs of a layer and an operation that visual tokens skip there."""
NOTHING: Skips = frozenset()


class _Hooks:
    """What runs around the modules of a layer in which visual tokens skip something."""

    def __init__(self, visual: Tensor) -> None:
        self._visual = visual  # [B, S] by place
        self._columns = visual  # [B, m] of the tokens that the layer gets

    def before_layer(self, module: Any, args: Any, named: dict[str, Any]) -> None:
        # Rows are padded on the right, so that a position is the token's place in its row. After
        # a cut the positions are those of the tokens left, with those of dropped tokens as filler.
        self._columns = self._visual.gather(1, named["position_ids"])

    def add_nothing(self, module: Any, args: Any, output: Any) -> Any:
        """Sets to zero what the module would add to the states of visual tokens."""
        added = output[0] if isinstance(output, tuple) else output
        added = added.masked_fill(self._columns[..., None], 0)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    def hide(self, module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Hides visual keys from text queries."""
        mask, visual = seen(named["attention_mask"], self._columns), self._columns[:, None]
        sees = visual[..., None] | ~visual[:, :, None]  # visual queries see all, text only text
        return args, {**named, "attention_mask": mask & sees}


@contextmanager
def skipping(model: PreTrainedModel, visual: Tensor, skips: Skips) -> Iterator[None]:
    """Lets visual tokens skip operations in the replays of a tape.

    Args:
        model: A decoder whose layers have ``mlp`` and get one position for each token, as the
            Llama of LLaVA, with the attention kernel sdpa.
        visual: [B, S] bool, the visual tokens of rows that are padded on the right.
        skips: What is skipped.
    """
    family, hooks = find(model), _Hooks(visual)
    with ExitStack() as undo:
        for at in {layer for layer, _ in skips}:
            layer: Any = family.layers(model)[at]
            handle = layer.register_forward_pre_hook(hooks.before_layer, with_kwargs=True)
            undo.callback(handle.remove)
        for at, operation in skips:
            layer = family.layers(model)[at]
            if operation == READ:
                reading = family.attention(layer)
                handle = reading.register_forward_pre_hook(hooks.hide, with_kwargs=True)
            else:
                module = layer.mlp if operation == FFN else family.attention(layer)
                handle = module.register_forward_hook(hooks.add_nothing)
            undo.callback(handle.remove)
        yield


def saved_flops(
    shape: DecoderShape, n_visual: int, n_text: int, operations: Collection[str]
) -> float:
    """FLOPs that ``n_visual`` tokens save in a layer by skipping operations.

    All three operations together save what dropping the tokens saves in this layer.
    """
    # What the tokens cost in the layer, F(v + t) - F(t), is divided into the feed-forward 6 v D F,
    # the projections of keys and values, the products of text queries with visual keys and values,
    # 4 t v H d, and the rest: projections and attention rows of visual queries.
    whole = layer_flops(shape, n_visual + n_text) - layer_flops(shape, n_text)
    alone = layer_flops(shape, n_visual)
    ffn = alone - layer_flops(replace(shape, ffn=0), n_visual)
    keys = alone - layer_flops(replace(shape, n_kv_heads=0), n_visual)
    read = 4.0 * n_text * n_visual * shape.n_heads * shape.head_dim
    parts = {FFN: ffn, READ: read, QUERIES: whole - ffn - keys - read}
    saved = sum(parts[operation] for operation in operations)
    return saved + keys if {QUERIES, READ} <= set(operations) else saved


@dataclass(frozen=True)
class Prompt:
    """The prompt whose cost is counted."""

    shape: DecoderShape
    n_tokens: int
    """Visual tokens."""
    n_text: int
    """Text tokens."""

    def schedule(self, cuts: Cuts) -> list[int]:
        """[L] visual tokens entering each layer."""
        return Plan(cuts).schedule(self.n_tokens, self.shape.n_layers)

    def flops(self, cuts: Cuts, skips: Skips = NOTHING) -> float:
        """FLOPs of the prefill, the choice of tokens included, as `plan_cost` counts them."""
        total = plan_cost(Plan(cuts), self.shape, self.n_tokens, self.n_text).prefill_flops
        for at, n_visual in enumerate(self.schedule(cuts)):
            mine = {operation for layer, operation in skips if layer == at}
            total -= saved_flops(self.shape, n_visual, self.n_text, mine)
        return total

    def share(self, cuts: Cuts, skips: Skips = NOTHING) -> float:
        """FLOPs that visual tokens cause, as a share of those in the unpruned model."""
        text = prefill_flops(self.shape, [self.n_text] * self.shape.n_layers)
        return (self.flops(cuts, skips) - text) / (self.flops(()) - text)

    def kv_share(self, cuts: Cuts, skips: Skips = NOTHING) -> float:
        """Bytes of K and V after the prefill, as a share of the unpruned model's.

        A layer in which nobody reads the tokens any more does not keep theirs.
        """
        counts = [
            self.n_text + (0 if (at, READ) in skips else n)
            for at, n in enumerate(self.schedule(cuts))
        ]
        full = [self.n_text + self.n_tokens] * self.shape.n_layers
        return kv_bytes(self.shape, counts) / kv_bytes(self.shape, full)

    def refilled(self, cuts: Cuts, skips: Skips, allowed: float) -> Cuts:
        """The cuts with as many more tokens as the FLOPs allow that are saved by the skips."""
        whole = self.n_tokens * self.shape.n_layers

        def tried(budget: int) -> Cuts:
            return project(cuts, budget / whole, self.n_tokens, self.shape.n_layers)

        low, high = spent(cuts, self.n_tokens, self.shape.n_layers), whole + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.flops(tried(middle), skips) <= allowed:
                low = middle
            else:
                high = middle
        return tried(low)


class Questions(ReplayedQuestions):
    """Samples with a recorded run of the unpruned model, on which cuts and skips are measured."""

    def __init__(self, loaded: Loaded, samples: Samples, batch_size: int) -> None:
        super().__init__(loaded, samples, batch_size)
        self._means: dict[tuple[Cuts, Skips, int], float] = {}

    def losses(self, cuts: Cuts, skips: Skips = NOTHING, share: float = 1.0) -> Losses:
        """[n] nats per answer token, at most `MOST`, and [n] whether the answer changed.

        Args:
            cuts: The cuts of a plan; may be empty.
            skips: What visual tokens skip.
            share: Share of the batches that are measured, at least one of them.
        """
        return self.replayed(
            _from_first_skip(cuts, skips),
            lambda tape: skipping(self.loaded.model, tape.visual_mask, skips),
            self._number(share),
        )

    def mean(self, cuts: Cuts, skips: Skips = NOTHING, share: float = 1.0) -> float:
        """Mean loss in nats, of the same samples as in `losses`; measured once."""
        setting = cuts, skips, self._number(share)
        if setting not in self._means:
            self._means[setting] = float(self.losses(cuts, skips, share)[0].mean())
        return self._means[setting]

    def _number(self, share: float) -> int:
        return max(1, round(share * self.n_batches))


def _from_first_skip(cuts: Cuts, skips: Skips) -> Cuts:
    """The cuts, after one that keeps all tokens if operations are skipped before them.

    A replay begins at its first cut.
    """
    first = min((layer for layer, _ in skips), default=0)
    if cuts and cuts[0].layer <= first:
        return cuts
    return (Cut(first, 1.0, "grid"), *cuts)
