"""One forward pass under a plan: makes the cuts and hands every layer its arguments.

The executor and calibration share it, so that calibration makes the same cuts as production.

Before every decoder layer a pass does three things. It makes the layer's cut, if the plan has one:
the selector chooses, and the states are gathered to the survivors. It works out which keys the
layer will see, by position, and tells the layer's cache. And it gathers the layer's arguments to
match.

Layers may compute on several devices (`device_map`). Masks and rotary tables are made where the
decoder begins, and so are the prompt, the survivors and the positions held. A cut is made where
the states are, and every gather where the tensor is that it takes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tpcal.plans.executor import compat, gather, merging
from tpcal.plans.executor.attention_reader import AttentionReader, Capture, warn_out_of_sight
from tpcal.plans.executor.cache import cache_layer
from tpcal.plans.executor.choice_sets import Apart, ChoiceSets
from tpcal.plans.executor.cutting import PreparedCut, attention_request, condition_met
from tpcal.plans.executor.kernels import FlashLayer
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.prompt import PromptTokens, grid_table
from tpcal.plans.executor.pruned_layers import PrunedKV, n_physical, pruned
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.executor.static_cache import upcoming
from tpcal.plans.executor.survivors import Survivors, columns_of, narrowed, ranks
from tpcal.plans.executor.transfers import all_on_device, on_device
from tpcal.plans.plan_records import PROPORTIONAL, n_keep
from tpcal.plans.selectors.base import Tokens, checked


class DecoderParts(NamedTuple):
    """The parts of a model that a pass works with."""

    final_norm: Callable[[Tensor], Tensor]
    """The decoder's last norm."""
    shared: Mapping[int, int]
    """The layers that read the keys and values of an earlier layer, each with that layer."""
    probes: Mapping[int, AttentionReader]
    """Readers of the attention modules before cuts, by layer."""
    flash: Mapping[int, FlashLayer]
    """The layers, by number, if their kernel is a flash kernel; otherwise empty."""


class ForwardPass:
    """The state of one forward pass.

    Args:
        cuts: The cuts by layer, from `prepare`.
        prompt: The prompt with its grids; None if this pass has no visual token.
        length: Number of tokens of the pass, S.
        parts: The parts of the model that the pass works with.
        captures: Attention that was read at layers that do not run in this pass, by layer.

    Attributes:
        survivors: The tokens that remain.
        records: Records of the cuts made so far.
        lengths: Number of tokens that each layer got, so far; empty without a prompt.
        n_called: How many layers were called, so far.
    """

    def __init__(
        self,
        cuts: Mapping[int, PreparedCut],
        prompt: PromptTokens | None,
        length: int,
        parts: DecoderParts,
        captures: Mapping[int, Capture] | None = None,
    ) -> None:
        self.cuts = cuts if prompt is not None else {}
        self.prompt = prompt
        self.length = length
        self.survivors = Survivors(None, None, prompt.n_visual if prompt else ())
        scope = next((cut.scope for cut in self.cuts.values()), "prompt")
        merge = next((cut.merge for cut in self.cuts.values()), None)
        self._proportional = merge == PROPORTIONAL
        self._log: tuple[Tensor, Tensor] | None = None
        self._sets = ChoiceSets.of(prompt, scope) if prompt else ChoiceSets((), 0)
        self._alive = self._sets.n_tokens
        self.records: list[CutRecord] = []
        self.lengths: list[int] = []
        self.n_called = 0
        self._final_norm = parts.final_norm
        self._shared = parts.shared
        self._sources = frozenset(self._shared.values())
        self._probes = parts.probes
        self._captures = dict(captures or {})
        self._flash = parts.flash
        self._gatherer = gather.Gatherer()
        self._plain: dict[tuple[int, int], Held] = {}
        self._held: dict[int, Held] = {}
        self._queries: dict[int, Survivors] = {}
        self._numbers: list[Tensor] | None = None

    def leaves_alone(self, layer: int, arguments: Mapping[str, Any]) -> bool:
        """Whether ``layer`` can take its arguments as they are: the fast path of decoding.

        One new token attends to all columns held. That is right without a mask if no column is
        filler; a mask would have a column for each position and must be gathered. The window of a
        flash kernel counts columns, so it needs a mask to count positions.
        """
        if self.length != 1 or self.survivors.places is not None:
            return False
        cache = compat.given_cache(arguments)
        source = self._shared.get(layer, layer)
        kv = None if cache is None or len(cache.layers) <= source else cache.layers[source]
        if not isinstance(kv, PrunedKV):
            return upcoming(kv) is None
        windowed = layer in self._flash and self._flash[layer].window is not None
        return arguments.get("attention_mask") is None and not kv.held.has_mask and not windowed

    def before_layer(
        self,
        layer: int,
        hidden: Tensor,
        arguments: Mapping[str, Any],
        positional: tuple[Any, ...] = (),
    ) -> tuple[Tensor, Mapping[str, Any], tuple[Any, ...]]:
        """The states, keyword arguments and further positional arguments for layer ``layer``.

        Args:
            layer: Number of the layer that runs next.
            hidden: [B, m, D] output of the layer before.
            arguments: The keyword arguments as the model passes them, for all S tokens.
            positional: The positional arguments after the states, likewise.
        """
        self._follow(hidden.shape[1])
        if layer in self.cuts:
            hidden = self._cut_there(self.cuts[layer], hidden)
        if self.prompt is not None:
            self.lengths.append(hidden.shape[1])
            self._ask(layer)
        held = self._keys(layer, hidden, compat.given_cache(arguments))
        self._queries[layer] = self.survivors
        if held is None:
            return hidden, arguments, positional
        flash = self._flash.get(layer)
        if flash is not None and layer in self._shared:
            source = self._shared[layer]
            flash = replace(flash, aligned=self._queries[source] is self.survivors)
        gathered = self._gatherer.arguments(arguments, self.survivors, held, self.length, flash)
        return hidden, gathered, self._gatherer.values(positional, self.survivors, self.length)

    def full_length(self, states: Tensor) -> Tensor:
        """[B, S, D] the states at their places, with zeros where tokens left."""
        return gather.scattered(states, self.survivors.to(states.device), self.length)

    def forget(self) -> None:
        """Drops what was asked of the probes or read by them, as a failed pass may leave it."""
        for probe in self._probes.values():
            probe.take()

    def alive(self) -> Tensor:
        """[B, S] bool, True at the tokens still there; at all real ones before the first cut."""
        real, places = self._prompt.real, self.survivors.places
        if places is None:
            return real
        valid = self.survivors.valid
        stays = torch.ones_like(places, dtype=torch.bool) if valid is None else valid
        return torch.zeros_like(real).scatter(1, places, stays)

    def _follow(self, n_columns: int) -> None:
        """Takes note if the decoder itself goes on with its last tokens only (Gemma 4)."""
        # The tokens that are left are text behind the images: no cut has anything to do any more,
        # and the pass now counts its places from the first of them.
        places = self.survivors.places
        if n_columns < (self.length if places is None else places.shape[1]):
            self.length, self.cuts = n_columns, {}
            self.survivors = Survivors(None, None, (0,) * len(self.survivors.n_visual))

    def _keys(self, layer: int, hidden: Tensor, cache: Any) -> Held | None:
        """The keys the layer will see, new ones included; None if nothing must be gathered."""
        source = self._shared.get(layer, layer)
        kv = cache_layer(cache, source)
        if source != layer:
            return self._shared_keys(source, hidden, kv)
        # What the layer's cache holds before this pass: its own record if an earlier pass pruned
        # it.
        static = upcoming(kv)
        if static is not None:  # in a decode step
            self._held[layer] = static
            return static
        places = self.survivors.places
        before = kv.held if isinstance(kv, PrunedKV) and kv.held.n_seen else None
        # No token left, now or earlier: the model's own arguments are right. A layer that lends
        # its keys still says what it holds, because the borrower may get fewer queries.
        if places is None and not isinstance(kv, PrunedKV):
            if layer in self._sources:
                self._held[layer] = self._unpruned(kv, hidden).extended(self.length)
            return None
        # Without survivors of a cut, all new tokens are kept (`extended`); otherwise the
        # survivors' places follow what is held (`joined`). The layer's first pruned pass exchanges
        # its cache.
        before = before or self._unpruned(kv, hidden)
        if places is None:
            held = before.extended(self.length)
        else:
            if kv is not None and not isinstance(kv, PrunedKV):
                kv = cache.layers[layer] = pruned(kv, before)
            sizes = self._log_sizes(hidden.dtype)
            held = before.joined(places, self.survivors.valid, self.length, sizes)
        if isinstance(kv, PrunedKV):
            kv.incoming = held
        self._held[layer] = held
        return held

    def _log_sizes(self, dtype: torch.dtype) -> Tensor | None:
        """[B, m] what attention adds to the logits of the survivors' keys; None if nothing."""
        sizes = self.survivors.sizes
        if sizes is None or not self._proportional:
            return None
        if self._log is None or self._log[0] is not sizes or self._log[1].dtype != dtype:
            self._log = sizes, sizes.log().to(dtype)  # once for all layers between two cuts
        return self._log[1]

    def _shared_keys(self, source: int, hidden: Tensor, kv: Any) -> Held | None:
        """The keys of a layer that reads those of layer ``source``."""
        held = self._held.get(source)
        if self.survivors.places is None and not isinstance(kv, PrunedKV):
            return held if held is not None and held.index.shape[1] else None
        return held or self._unpruned(None, hidden).extended(self.length)

    def _unpruned(self, kv: Any, hidden: Tensor) -> Held:
        """What a cache layer holds that was never pruned: the last positions seen, in order."""
        n_seen = 0 if kv is None else kv.get_seq_length()
        key = n_seen, n_physical(kv)
        if key not in self._plain:
            places = self.survivors.places
            device = hidden.device if places is None else places.device
            self._plain[key] = Held.recent(hidden.shape[0], *key, device)
        return self._plain[key]

    def _ask(self, layer: int) -> None:
        """Requests from the probe of this layer the attention that the next cut needs."""
        after = self.cuts.get(layer + 1)
        if after is None or not after.reads_attention or layer not in self._probes:
            return
        condition = after.cut.condition
        if condition is None and self._planned(after) == self._alive:
            return  # no token will leave, so no score is needed
        both = condition is not None and condition.visual_to_text_below is not None
        text = condition is not None or "text_scores" in after.needs
        wanted = attention_request(self._prompt, self.survivors, text=text, visual_queries=both)
        probe = self._probes[layer]
        probe.ask(wanted)
        if probe.window is not None and max(self._prompt.n_behind) >= probe.window:
            warn_out_of_sight(layer, probe.window)

    def _cut_there(self, prepared: PreparedCut, hidden: Tensor) -> Tensor:
        """As `_cut`, on the device of the states; the survivors come back to the masks."""
        here = self._prompt
        self.prompt, self.survivors = here.to(hidden.device), self.survivors.to(hidden.device)
        hidden = self._cut(prepared, hidden)
        self.prompt, self.survivors = here, self.survivors.to(here.visual.device)
        return hidden

    def _cut(self, prepared: PreparedCut, hidden: Tensor) -> Tensor:
        """The states of the survivors of a cut; notes the survivors and what the cut did."""
        # 1. How many visual tokens each prompt, or each image, keeps. Keeps are shares of the
        #    original count, so a later cut is not about what an earlier one left. A prompt whose
        #    condition is not met keeps all that are alive.
        prompt, before, cut = self._prompt, self.survivors, prepared.cut
        alive, n_left, capture = self._alive, self._planned(prepared), None
        if prepared.reads_attention and (cut.condition is not None or n_left != alive):
            capture = self._capture(cut.layer - 1)
        if cut.condition is not None:
            fires = condition_met(cut.condition, capture)
            pairs = zip(self._sets.sets, n_left, alive, strict=True)
            n_left = tuple(n if fires[one.row] else a for one, n, a in pairs)
        # 2. Which columns the visual tokens have now, and which original tokens they are.
        columns, valid = columns_of(before.take(prompt.visual), max(before.n_visual))
        index = ranks(prompt, before, columns, valid)
        # 3. Which of them stay. A cut without a selector drops all tokens of the rows that it is
        #    about; a merging selector also gives those that stay new states.
        stays, merged, sizes = valid, None, None
        if n_left != alive:
            n_visual = self._sets.by_row(n_left)
            if prepared.selector is None:
                wanted = on_device(n_visual, hidden.device)
                stays = valid & (wanted > 0)[:, None]
            else:
                tokens = self._tokens(prepared, hidden, capture, columns, valid, index)
                if prepared.merge is not None:
                    sizes = _sizes(before, columns, valid)
                stays, merged, sizes = self._chosen(prepared, tokens, n_left, sizes)
            # 4. The survivors and their states.
            self.survivors, order = narrowed(prompt, before, columns, stays, n_visual)
            self._alive = n_left
            hidden = gather.take_columns(hidden, order)
            if merged is not None:
                visual = self.survivors.take(prompt.visual)
                hidden = gather.with_states(hidden, visual, merged, stays, max(n_visual))
                if sizes is not None:
                    self.survivors = _with_sizes(self.survivors, visual, sizes, stays)
        t2v = v2t = None
        if cut.condition is not None and capture is not None:
            t2v, v2t = capture.text_to_visual, capture.visual_to_text
        self.records.append(CutRecord(cut.layer, index, stays, t2v, v2t))
        return hidden

    def _planned(self, prepared: PreparedCut) -> tuple[int, ...]:
        """Visual tokens of each set that stay at a cut whose condition is met."""
        kept = (n_keep(prepared.cut.keep, n, prepared.round_to) for n in self._sets.n_tokens)
        return tuple(map(min, kept, self._alive))

    def _chosen(
        self,
        prepared: PreparedCut,
        tokens: Tokens,
        n_left: tuple[int, ...],
        sizes: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What stays, and the states and sizes of that if they change.

        Args:
            prepared: The cut.
            tokens: The visual tokens alive.
            n_left: How many of each set stay.
            sizes: [B, N] the tokens' sizes if those that leave are merged into others, else None.

        Returns:
            [B, N] bool, True where a token stays; [B, N, D] states or None; [B, N] sizes or None.
        """
        selector = prepared.selector
        assert selector is not None
        wanted = on_device(n_left, tokens.hidden.device)
        apart = None
        if not self._sets.are_rows:
            n_columns = tokens.valid.shape[1]
            apart = Apart(self._sets, self._alive, n_columns, tokens.hidden.device)
            tokens = apart.tokens(tokens)
            sizes = None if sizes is None else apart.taken(sizes)
        counts = self._sets.counts(self._prompt, self._alive, n_left)
        tokens = replace(tokens, counts=counts)
        stays = checked(
            selector.select(tokens, wanted), tokens, wanted, prepared.cut.selector or ""
        )
        states = selector.merged(tokens, stays)  # a selector's own way comes first
        if states is not None:
            sizes = None
        elif sizes is not None:
            states, sizes = merging.merged(tokens, stays, sizes)
        if apart is None:
            return stays, states, sizes
        states, sizes = (None if one is None else apart.together(one) for one in (states, sizes))
        return apart.together(stays), states, sizes

    def _tokens(
        self,
        prepared: PreparedCut,
        hidden: Tensor,
        capture: Capture | None,
        columns: Tensor,
        valid: Tensor,
        index: Tensor,
    ) -> Tokens:
        """What the selector gets: of the visual tokens alive, and only what it needs."""
        prompt, needs = self._prompt, prepared.needs
        if self._numbers is None or self._numbers[0].device != hidden.device:
            numbers = [grid_table(prompt), torch.tensor(prompt.n_visual)]
            self._numbers = all_on_device(numbers, hidden.device)
        table, n_original = self._numbers
        filler = None if self.survivors.equal_rows else valid
        place = gather.by_rank(table, index, filler)
        vision: Tensor | None = None
        if "vision" in needs:
            assert prompt.vision is not None, "the vision tower was not read"
            vision = gather.by_rank(prompt.vision, index, filler, 0)
        text: tuple[Tensor, Tensor] | None = None
        if "text" in needs:
            text = columns_of(self.survivors.take(prompt.text), prompt.n_query_text)
        keys = None if capture is None or "keys" not in needs else gather.flat_keys(capture.keys)
        scores = capture if "scores" in needs else None
        looks = None if capture is None or "text_scores" not in needs else capture.text_attention
        return Tokens(
            layer=prepared.cut.layer,
            hidden=gather.take_columns(hidden, columns),
            valid=valid,
            index=index,
            image=place[..., 0],
            n_original=n_original,
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
            final_norm=self._normed if "norm" in needs else None,
            vision_scores=None if vision is None else vision[..., 0],
            vision_keys=None if vision is None else vision[..., 1:],
            covers=place[..., 5] > 0,
        )

    def _normed(self, states: Tensor) -> Tensor:
        return self._final_norm(states).to(states.device)

    def _capture(self, layer: int) -> Capture:
        capture = self._captures.get(layer)
        if capture is None:
            capture = self._probes[layer].take()
        assert capture is not None, f"nothing was read at layer {layer}"
        return capture

    @property
    def _prompt(self) -> PromptTokens:
        assert self.prompt is not None
        return self.prompt


def _sizes(survivors: Survivors, columns: Tensor, valid: Tensor) -> Tensor:
    """[B, N] sizes of the visual tokens in ``columns``; 0 on filler."""
    if survivors.sizes is None:
        return valid.float()
    return survivors.sizes.gather(1, columns) * valid


def _with_sizes(survivors: Survivors, visual: Tensor, sizes: Tensor, stays: Tensor) -> Survivors:
    """The survivors of a cut with new sizes.

    Args:
        survivors: The survivors.
        visual: [B, m] bool, their visual columns.
        sizes: [B, N] sizes of the visual tokens before the cut.
        stays: [B, N] bool, which of those are the visual columns, in order.
    """
    before = survivors.sizes
    if before is None:
        before = torch.ones_like(visual, dtype=sizes.dtype)
    most = max(survivors.n_visual)
    new = gather.with_states(before[..., None], visual, sizes[..., None], stays, most)
    return replace(survivors, sizes=new[..., 0])


def _by_token(scores: Tensor, columns: Tensor) -> Tensor:
    """[B, H, N] the scores [B, H, m] of the tokens in ``columns`` [B, N]."""
    return scores.gather(2, columns[:, None].expand(-1, scores.shape[1], -1))
