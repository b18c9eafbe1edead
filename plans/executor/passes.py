"""One forward pass under a plan: makes the cuts and hands every layer its arguments.

Executor and calibration share it, so calibration makes the very cuts of production.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import gather
from tpcal.plans.executor.attention_reader import AttentionReader, Capture
from tpcal.plans.executor.cache import Held, PrunedKV, cache_layer, n_physical, pruned
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded
from tpcal.plans.schema import Condition, Cut, n_keep
from tpcal.plans.selectors import create
from tpcal.plans.selectors.base import Selector, Tokens, checked


@dataclass(frozen=True)
class PreparedCut:
    """A cut with its selector made."""

    cut: Cut
    selector: Selector | None
    reads_attention: bool
    """The attention of the layer before is needed."""
    round_to: int | None = None
    """The plan's."""

    @property
    def needs(self) -> frozenset[str]:
        """What the selector needs."""
        return frozenset() if self.selector is None else self.selector.needs


def prepare(cuts: Sequence[Cut], round_to: int | None = None) -> dict[int, PreparedCut]:
    """The cuts by layer.

    Args:
        cuts: Of a plan.
        round_to: The plan's.

    Raises:
        UsageError: Unknown selector or parameter.
    """
    prepared = {}
    for cut in cuts:
        selector = None if cut.selector is None else create(cut.selector, cut.params)
        reads = cut.condition is not None or (selector is not None and selector.reads_attention)
        prepared[cut.layer] = PreparedCut(cut, selector, reads and cut.layer > 0, round_to)
    return prepared


@dataclass(frozen=True)
class CutRecord:
    """What one cut did."""

    layer: int
    index: Tensor
    """[B, N] int64 original ranks of the visual tokens that were alive before; -1 on filler."""
    stays: Tensor
    """[B, N] bool."""
    text_to_visual: Tensor | None = None
    """[B] attention mass measured for a conditional cut."""
    visual_to_text: Tensor | None = None

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Original ranks of the visual tokens kept in each row, ascending."""
        return tuple(
            tuple(rank[stay].tolist()) for rank, stay in zip(self.index, self.stays, strict=True)
        )


class ForwardPass:
    """The state of one forward pass.

    Args:
        cuts: By layer, from `prepare`.
        prompt: With its grids; None where no visual token is in this pass.
        length: Tokens of the pass, S.
        final_norm: The decoder's last norm.
        shared: Layers that read the keys and values of an earlier layer, and that layer.
        probes: Readers of the attention modules before cuts, by layer.
        captures: What was read at layers that do not run in this pass, by layer.
    """

    def __init__(
        self,
        cuts: Mapping[int, PreparedCut],
        prompt: gather.PromptTokens | None,
        length: int,
        *,
        final_norm: Callable[[Tensor], Tensor] | None = None,
        shared: Mapping[int, int] | None = None,
        probes: Mapping[int, AttentionReader] | None = None,
        captures: Mapping[int, Capture] | None = None,
    ) -> None:
        self.cuts = cuts if prompt is not None else {}
        self.prompt = prompt
        self.length = length
        self.survivors = gather.Survivors(None, None, prompt.n_visual if prompt else ())
        self.records: list[CutRecord] = []
        self.lengths: list[int] = []
        self._final_norm = final_norm
        self._shared = shared or {}
        self._sources = frozenset(self._shared.values())
        self._probes = probes or {}
        self._captures = dict(captures or {})
        self._gatherer = gather.Gatherer()
        self._plain: dict[tuple[int, int], Held] = {}
        self._held: dict[int, Held] = {}
        self._grid_table: Tensor | None = None
        for probe in self._probes.values():
            probe.take()  # what a failed pass may have left

    def leaves_alone(self, layer: int, arguments: Mapping[str, Any]) -> bool:
        """Whether a decode step can take its arguments as they are: the fast path."""
        if self.length != 1 or self.survivors.places is not None:
            return False
        cache = arguments.get("past_key_values")
        source = self._shared.get(layer, layer)
        kv = None if cache is None or len(cache.layers) <= source else cache.layers[source]
        if not isinstance(kv, PrunedKV):
            return True
        return arguments.get("attention_mask") is None and kv.held.valid is None

    def before_layer(
        self,
        layer: int,
        hidden: Tensor,
        arguments: Mapping[str, Any],
        positional: tuple[Any, ...] = (),
    ) -> tuple[Tensor, Mapping[str, Any], tuple[Any, ...]]:
        """States, keyword and further positional arguments for decoder layer ``layer``.

        Args:
            layer: Number of the layer that runs next.
            hidden: [B, m, D] output of the layer before.
            arguments: As the model passes them, for all S tokens.
            positional: Those behind the states, likewise.
        """
        self._follow(hidden.shape[1])
        if layer in self.cuts:
            hidden = self._cut(self.cuts[layer], hidden)
        if self.prompt is not None:
            self.lengths.append(hidden.shape[1])
            self._ask(layer)
        held = self._keys(layer, hidden, arguments.get("past_key_values"))
        if held is None:
            return hidden, arguments, positional
        gathered = self._gatherer.arguments(arguments, self.survivors, held, self.length)
        return hidden, gathered, self._gatherer.values(positional, self.survivors, self.length)

    def full_length(self, states: Tensor) -> Tensor:
        """[B, S, D] with zeros where tokens left."""
        return gather.scattered(states, self.survivors, self.length)

    def alive(self) -> Tensor:
        """[B, S] bool, the tokens still there; all real ones before the first cut."""
        real, places = self._prompt.real, self.survivors.places
        if places is None:
            return real
        valid = self.survivors.valid
        stays = torch.ones_like(places, dtype=torch.bool) if valid is None else valid
        return torch.zeros_like(real).scatter(1, places, stays)

    def _follow(self, n_columns: int) -> None:
        """Takes note where the decoder itself goes on with its last tokens only (Gemma 4)."""
        places = self.survivors.places
        if n_columns < (self.length if places is None else places.shape[1]):
            self.length, self.cuts = n_columns, {}
            self.survivors = gather.Survivors(None, None, (0,) * len(self.survivors.n_visual))

    def _keys(self, layer: int, hidden: Tensor, cache: Any) -> Held | None:
        """The keys the layer will see, new ones included; None where nothing must be gathered."""
        source = self._shared.get(layer, layer)
        kv = cache_layer(cache, source)
        if source != layer:
            return self._shared_keys(source, hidden, kv)
        places = self.survivors.places
        before = kv.held if isinstance(kv, PrunedKV) and kv.held.n_seen else None
        if places is None and not isinstance(kv, PrunedKV):
            if layer in self._sources:
                self._held[layer] = self._unpruned(kv, hidden).extended(self.length)
            return None
        before = before or self._unpruned(kv, hidden)
        if places is None:
            held = before.extended(self.length)
        else:
            if kv is not None and not isinstance(kv, PrunedKV):
                kv = cache.layers[layer] = pruned(kv, before)
            held = before.joined(places, self.survivors.valid, self.length)
        if isinstance(kv, PrunedKV):
            kv.incoming = held
        self._held[layer] = held
        return held

    def _shared_keys(self, source: int, hidden: Tensor, kv: Any) -> Held | None:
        held = self._held.get(source)
        if self.survivors.places is None and not isinstance(kv, PrunedKV):
            return held if held is not None and held.index.shape[1] else None
        return held or self._unpruned(None, hidden).extended(self.length)

    def _unpruned(self, kv: Any, hidden: Tensor) -> Held:
        """What a cache layer holds that was never pruned."""
        n_seen = 0 if kv is None else kv.get_seq_length()
        key = n_seen, n_physical(kv)
        if key not in self._plain:
            self._plain[key] = Held.recent(hidden.shape[0], *key, hidden.device)
        return self._plain[key]

    def _ask(self, layer: int) -> None:
        """Tells the probe of this layer what the cut after it needs."""
        after = self.cuts.get(layer + 1)
        if after is None or not after.reads_attention or layer not in self._probes:
            return
        condition = after.cut.condition
        if condition is None and self._planned(after) == self.survivors.n_visual:
            return  # nothing will leave
        both = condition is not None and condition.visual_to_text_below is not None
        text = condition is not None or "text_scores" in after.needs
        wanted = gather.attention_request(
            self._prompt, self.survivors, text=text, visual_queries=both
        )
        self._probes[layer].ask(wanted)

    def _cut(self, prepared: PreparedCut, hidden: Tensor) -> Tensor:
        prompt, before, cut = self._prompt, self.survivors, prepared.cut
        alive, n_left, capture = before.n_visual, self._planned(prepared), None
        if prepared.reads_attention and (cut.condition is not None or n_left != alive):
            capture = self._capture(cut.layer - 1)
        if cut.condition is not None:
            fires = _fires(cut.condition, capture)
            n_left = tuple(n if f else a for n, a, f in zip(n_left, alive, fires, strict=True))
        columns, valid = gather.columns_of(before.take(prompt.visual), max(alive))
        index = gather.ranks(prompt, before, columns, valid)
        stays, merged = valid, None
        if n_left != alive:
            wanted = torch.tensor(n_left, device=hidden.device)
            if prepared.selector is None:
                stays = valid & (wanted > 0)[:, None]
            else:
                tokens = self._tokens(prepared, hidden, capture, columns, valid, index)
                chosen = prepared.selector.select(tokens, wanted)
                stays = checked(chosen, tokens, wanted, cut.selector or "")
                merged = prepared.selector.merged(tokens, stays)
            self.survivors, order = gather.narrowed(prompt, before, columns, stays, n_left)
            hidden = gather.take_columns(hidden, order)
            if merged is not None:
                visual = self.survivors.take(prompt.visual)
                hidden = gather.with_states(hidden, visual, merged, stays, max(n_left))
        t2v = v2t = None
        if cut.condition is not None and capture is not None:
            t2v, v2t = capture.text_to_visual, capture.visual_to_text
        self.records.append(CutRecord(cut.layer, index, stays, t2v, v2t))
        return hidden

    def _planned(self, prepared: PreparedCut) -> tuple[int, ...]:
        """Visual tokens of each row after a cut that fires."""
        kept = (n_keep(prepared.cut.keep, n, prepared.round_to) for n in self._prompt.n_visual)
        return tuple(map(min, kept, self.survivors.n_visual))

    def _tokens(
        self,
        prepared: PreparedCut,
        hidden: Tensor,
        capture: Capture | None,
        columns: Tensor,
        valid: Tensor,
        index: Tensor,
    ) -> Tokens:
        prompt, needs = self._prompt, prepared.needs
        if self._grid_table is None:
            self._grid_table = gather.grid_table(prompt).to(hidden.device)
        place = gather.by_rank(self._grid_table, index)
        vision: Tensor | None = None
        if "vision" in needs:
            assert prompt.vision is not None, "the vision tower was not read"
            vision = gather.by_rank(prompt.vision, index, 0)
        text: tuple[Tensor, Tensor] | None = None
        if "text" in needs:
            text = gather.columns_of(self.survivors.take(prompt.text), prompt.n_query_text)
        keys = None if capture is None or "keys" not in needs else gather.flat_keys(capture.keys)
        scores = capture if "scores" in needs else None
        looks = None if capture is None or "text_scores" not in needs else capture.text_attention
        return Tokens(
            layer=prepared.cut.layer,
            hidden=gather.take_columns(hidden, columns),
            valid=valid,
            index=index,
            image=place[..., 0],
            n_original=torch.tensor(prompt.n_visual, device=hidden.device),
            grid_row=place[..., 1],
            grid_col=place[..., 2],
            grid_shape=place[..., 3:5],
            logits=None if scores is None else _by_token(scores.logits, columns),
            lse=None if scores is None else scores.lse,
            keys=None if keys is None else gather.take_columns(keys, columns),
            text_hidden=None if text is None else gather.take_columns(hidden, text[0]),
            text_valid=None if text is None else text[1],
            text_attention=looks,
            text_keys=None if text is None or keys is None else gather.take_columns(keys, text[0]),
            final_norm=self._final_norm if "norm" in needs else None,
            vision_scores=None if vision is None else vision[..., 0],
            vision_keys=None if vision is None else vision[..., 1:],
            covers=place[..., 5] > 0,
        )

    def _capture(self, layer: int) -> Capture:
        capture = self._captures.get(layer)
        if capture is None:
            capture = self._probes[layer].take()
        assert capture is not None, f"nothing was read at layer {layer}"
        return capture

    @property
    def _prompt(self) -> gather.PromptTokens:
        assert self.prompt is not None
        return self.prompt


def with_grids(
    family: Family, model: PreTrainedModel, prompt: gather.PromptTokens, inputs: Mapping[str, Any]
) -> gather.PromptTokens:
    """The prompt with the views of its images.

    Raises:
        UsageError: The prompt's visual tokens are not those of the images it came with.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    grids = family.grids(model, prompt, {**encoded.arguments(inputs), **given})
    counts = tuple(sum(len(grid.row) for grid in row) for row in grids)
    if counts != prompt.n_visual:
        raise UsageError(
            f"The visual tokens of each prompt must be those of its images, {list(counts)} by "
            f"their sizes; got {list(prompt.n_visual)}. Pass the processor's output unchanged."
        )
    mixed = prompt.text_before_visual or family.bidirectional
    return replace(prompt, grids=grids, text_before_visual=mixed)


def shared_layers(family: Family, model: PreTrainedModel) -> dict[int, int]:
    """Layers that read the keys and values of an earlier layer, and that layer."""
    sources = {at: family.key_source(model, at) for at in range(len(family.layers(model)))}
    return {at: source for at, source in sources.items() if source != at}


def _fires(condition: Condition, capture: Capture | None) -> list[bool]:
    """Per row; never where there is nothing to measure (no visual token, or no text after one)."""
    assert capture is not None
    assert capture.text_to_visual is not None
    fires = capture.text_to_visual < condition.text_to_visual_below
    if condition.visual_to_text_below is not None:
        assert capture.visual_to_text is not None
        fires &= capture.visual_to_text < condition.visual_to_text_below
    return fires.tolist()


def _by_token(scores: Tensor, columns: Tensor) -> Tensor:
    return scores.gather(2, columns[:, None].expand(-1, scores.shape[1], -1))
