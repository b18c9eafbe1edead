"""Tape: one unpruned forward pass, recorded so that a cut costs only the layers after it.

A replay makes its cuts with the executor's own code (`tpcal.plans.executor.passes`), on
teacher-forced input: prompt and answer in one sequence. Selection looks at the prompt only, as
production prefill does.

Layers 0 … l - 1 compute the same with a cut before layer l as without it. So the unpruned pass is
run once and the input of every layer is kept; a cut before layer l is then tried by running layers
l … L - 1 alone, on the recorded input of layer l.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat, kernels
from tpcal.plans.executor.architecture import (
    flash_layers,
    shared_layers,
    with_grids,
    without_flash,
)
from tpcal.plans.executor.attention_reader import AttentionReader, Capture, probing
from tpcal.plans.executor.cutting import PreparedCut, attention_request, prepare
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.executor.passes import DecoderParts, ForwardPass
from tpcal.plans.executor.prompt import PromptTokens, read_prompt
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.families import find
from tpcal.plans.images import vision_reader
from tpcal.plans.plan_records import UNCUT, Cut, Plan

_STATES = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", *compat.CACHE_NAMES)
"""Arguments of the decoder that only its own code reads, before its first layer."""


@dataclass(frozen=True)
class Replayed:
    """The results of a replay with cuts."""

    logits: Tensor
    """[B, A, V] at the positions asked for."""
    first_output: Tensor
    """[B, S, D] output of the first cut's layer; zeros in the places of dropped tokens."""
    kept_mask: Tensor
    """[B, S] bool, tokens that entered the first cut's layer."""
    records: tuple[CutRecord, ...]
    """What each cut did, in the order of the layers."""


@dataclass(frozen=True)
class _Call:
    """The arguments of one decoder layer, other than its hidden states."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True)
class Recording:
    """Everything that replays read of a pass; a `tpcal.calibrate.tape_store.Store` can keep it."""

    prompt: PromptTokens
    states: Mapping[int, Tensor]
    calls: tuple[_Call, ...]
    decoder_inputs: Mapping[str, Any]
    captures: Mapping[int, Capture]

    def of_layer_0(self) -> Recording:
        """The part that whole plans read: the states of layer 0 and the layers' arguments.

        The states are B·S·D numbers. The last output is left out, so `Tape.answer_states` has to
        be called before.
        """
        return replace(self, states={0: self.states[0]}, captures={})


class Tape:
    """A recorded pass. Make one with `Tape.record`.

    Memory: with every layer, each layer takes B·S·(D + key width) numbers, and B·T·N numbers for
    the attention of T text tokens to N visual tokens, which is 1 to 5 % of the whole. With layer 0
    only, the states take B·S·D numbers twice. Masks of rows of different lengths take at least
    B·S·S bytes, for all layers together.

    Example:
        >>> tape = Tape.record(model, inputs)  # doctest: +SKIP
        >>> tape.replay([Cut(2, 0.25, "grid")], positions).logits  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, recording: Recording) -> None:
        self._model = model
        self._family = find(model)
        self._layers = self._family.layers(model)
        self.recording = recording
        self._prompt = recording.prompt
        self._states = recording.states
        self._calls = recording.calls
        self._decoder_inputs = recording.decoder_inputs
        self._captures = recording.captures

    @classmethod
    @torch.no_grad()
    def record(
        cls,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        *,
        prompt_length: Tensor | None = None,
        every_layer: bool = True,
    ) -> Tape:
        """The tape of one unpruned pass without a cache.

        Args:
            model: The model, in evaluation mode, with no plan applied.
            inputs: Inputs of the model, among them input_ids; padded on either side, with a 2-D
                attention_mask.
            prompt_length: [B] real tokens up to the end of the prompt; None if the whole sequence
                is the prompt.
            every_layer: Whether to keep the input of every layer. If False, only the input of
                layer 0 is kept, which is enough to replay whole plans.

        Raises:
            UsageError: A plan is applied to the model, or the model is in training mode.
        """
        if is_applied(model) or model.training:
            raise UsageError(
                "A tape needs the unpruned model in evaluation mode; remove the plan, call eval()."
            )
        prompt = _read_prompt(model, inputs, prompt_length)
        family = find(model)
        layers = family.layers(model)
        states: dict[int, Tensor] = {}
        calls: list[_Call] = []
        decoder_inputs: dict[str, Any] = {}
        captures: dict[int, Capture] = {}
        with ExitStack() as undo:
            # Step 1: read the attention of the vision tower, if the family can. Selectors that
            # need it can then be replayed without running the tower again.
            probes: Mapping[int, AttentionReader] = {}
            seen = None
            if max(prompt.n_visual) and vision_reader.problem(family, model) is None:
                seen = undo.enter_context(vision_reader.reading(family, model))
            # Step 2: read the attention of every decoder layer to all visual tokens. A cut before
            # layer l selects by the attention of layer l - 1, which a replay from l does not run.
            if every_layer and max(prompt.n_visual):
                modules = {at: family.attention(layer) for at, layer in enumerate(layers)}
                probes = undo.enter_context(probing(modules))
                everything = Survivors(None, None, prompt.n_visual)
                wanted = attention_request(prompt, everything, text=True, visual_queries=True)
                for probe in probes.values():
                    probe.ask(wanted)

            # Step 3: hook the layers. Layers run in order, so the number of calls so far is the
            # layer's index. ``states[i]`` is the input of layer i, and ``states[L]`` the output
            # of the last layer.
            def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                at = len(calls)
                if every_layer or at == 0:
                    states[at] = args[0] if args else kwargs["hidden_states"]
                named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
                calls.append(_Call(args[1:], named))

            def after(module: Any, args: tuple[Any, ...], output: Any) -> None:
                states[len(layers)] = output[0] if isinstance(output, tuple) else output

            def before_decoder(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                decoder_inputs.update({k: v for k, v in kwargs.items() if k not in _STATES})

            hook = family.decoder(model).register_forward_pre_hook(
                before_decoder, with_kwargs=True
            )
            undo.callback(hook.remove)
            for layer in layers:
                hook = layer.register_forward_pre_hook(before, with_kwargs=True)
                undo.callback(hook.remove)
            undo.callback(layers[-1].register_forward_hook(after).remove)
            # Step 4: run the model once, then collect what the readers saw.
            family.base(model)(**family.numbered(inputs), use_cache=False)
            if seen is not None:
                prompt = replace(prompt, vision=seen.of(prompt, inputs))
            for at, probe in probes.items():
                capture = probe.take()
                assert capture is not None
                captures[at] = capture
        return cls(model, Recording(prompt, states, tuple(calls), decoder_inputs, captures))

    @property
    def n_layers(self) -> int:
        """Number of decoder layers, L."""
        return len(self._layers)

    @property
    def batch_size(self) -> int:
        """Number of rows, B."""
        return self._prompt.n_rows

    @property
    def text_mask(self) -> Tensor:
        """[B, S] bool, real text tokens of prompt and answer."""
        return self._prompt.real & ~self._prompt.visual

    @property
    def visual_mask(self) -> Tensor:
        """[B, S] bool, visual tokens."""
        return self._prompt.visual

    def state(self, layer: int) -> Tensor:
        """[B, S, D] input of a layer; for ``n_layers`` the last output, before the final norm.

        Raises:
            ValueError: The input of this layer was not recorded.
        """
        if layer not in self._states:
            raise ValueError(f"layer must be recorded ({sorted(self._states)}); got {layer}.")
        return self._states[layer]

    @torch.no_grad()
    def logits(self, positions: Tensor) -> Tensor:
        """[B, A, V] logits of the unpruned pass at ``positions`` [B, A].

        Negative positions give any value.
        """
        return self.head(self.answer_states(positions))

    def answer_states(self, positions: Tensor) -> Tensor:
        """[B, A, D] the last output at ``positions``, which is all that `head` needs."""
        return _picked(self.state(self.n_layers), positions)

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """[B, A, V] logits of last outputs [B, A, D], through the final norm."""
        return self._family.logits(self._model, self._family.final_norm(self._model)(states))

    @torch.no_grad()
    def replay(
        self,
        cuts: Sequence[Cut],
        positions: Tensor,
        like: Plan = UNCUT,
    ) -> Replayed:
        """The pass with these cuts, run from the first cut's layer on.

        Args:
            cuts: At least one cut, with rising layers.
            positions: [B, A] where logits are wanted; negative ones give any value.
            like: A plan of the same scope, rounding and merging as theirs.

        Raises:
            ValueError: There is no cut, or a cut at a layer that the model does not have.
            UsageError: A selector needs the vision tower's attention, which cannot be read.
        """
        prepared = prepare(replace(like, cuts=tuple(cuts)))
        if not prepared or max(prepared) >= self.n_layers:
            raise ValueError(f"cuts must be at layers below {self.n_layers}; got {list(cuts)}.")
        self._check_vision(prepared.values())
        # The replay starts at the first cut if that layer's input was recorded, else at layer 0.
        # A cut that reads attention needs that of the layer before it: from the recording if the
        # replay starts after that layer, otherwise from a reader on the layer as it runs.
        first = min(prepared)
        start = first if first in self._states else 0
        asked = [at - 1 for at, cut in prepared.items() if cut.reads_attention and at > start]
        probed = {at: self._family.attention(self._layers[at]) for at in asked}
        captures = {first - 1: self._captures[first - 1]} if first - 1 in self._captures else {}
        with ExitStack() as undo:
            others = without_flash(self._family, self._model, prepared)
            probes = undo.enter_context(probing(probed, others))
            text = self._model.config.get_text_config(decoder=True)
            flash = kernels.is_flash(text._attn_implementation)
            run = ForwardPass(
                prepared,
                self._prompt if max(self._prompt.n_visual) else None,
                self._prompt.visual.shape[1],
                DecoderParts(
                    self._family.final_norm(self._model),
                    shared_layers(self._family, self._model),
                    probes,
                    flash_layers(self._family, self._model) if flash else {},
                ),
                captures,
            )
            self._family.attach(self._model, lambda: run, undo)
            return self._run(run, start, first, positions)

    def attention_mass(self, layer: int) -> tuple[Tensor, Tensor]:
        """[B] attention mass from text to visual tokens at ``layer``, and [B] from visual to text.

        Both are nan if there are no visual tokens. A conditional cut before layer l reads the
        masses of layer l - 1.

        Raises:
            ValueError: The tape was recorded without ``every_layer``.

        Source:
            ToDRE (arXiv 2505.18757v2), stage 2. Text is the prompt's text after the first visual
            token.
        """
        if not self._captures:
            if max(self._prompt.n_visual):
                raise ValueError("Attention is recorded only with every_layer=True.")
            nothing = torch.full((self.batch_size,), torch.nan, device=self.visual_mask.device)
            return nothing, nothing
        capture = self._captures[layer]
        assert capture.text_to_visual is not None
        assert capture.visual_to_text is not None
        return capture.text_to_visual, capture.visual_to_text

    @torch.no_grad()
    def turned(self, layer: int, tau: float) -> Tensor:
        """[B] share of visual tokens whose state turns in ``layer``; nan without visual tokens.

        A state turns if the cosine between the layer's input and output is below ``tau``.

        Source:
            Li et al. 2025 (BTP), arXiv 2505.22038, the measure that chooses their pruning layers.
        """
        # share = |{visual i: cos(h_l[i], h_(l+1)[i]) < tau}| / |{visual i}|
        before, after = self.state(layer).float(), self.state(layer + 1).float()
        turned = torch.cosine_similarity(before, after, dim=-1) < tau
        visual = self._prompt.visual
        return (turned & visual).sum(dim=1) / visual.sum(dim=1)

    def _check_vision(self, cuts: Iterable[PreparedCut]) -> None:
        if self._prompt.vision is not None or not max(self._prompt.n_visual):
            return
        for prepared in cuts:
            if "vision" in prepared.needs:
                unread = vision_reader.problem(self._family, self._model)
                raise UsageError(f"The selector {prepared.cut.selector} {unread}")

    def _run(self, run: ForwardPass, start: int, first: int, positions: Tensor) -> Replayed:
        hidden = self._states[start]
        first_output = kept = torch.empty(0)
        # The loop repeats what the decoder's own code does between its layers. ``before_layer``
        # makes the cut of a layer, if there is one: it shortens the states, and the layer's mask
        # and position arguments with them. The recorded arguments themselves do not change.
        # Layers may share a dict and write into it, so every replay gives them a copy of it.
        stores: dict[int, Any] = {}
        for at in range(start, self.n_layers):
            call = self._calls[at]
            named: Mapping[str, Any] = {
                key: stores.setdefault(id(value), copy.copy(value))
                if isinstance(value, dict)
                else value
                for key, value in call.named.items()
            }
            hidden, named, positional = run.before_layer(at, hidden, named, call.positional)
            output = self._layers[at](hidden, *positional, **named)
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = self._family.between(self._model, at, hidden, self._decoder_inputs, run)
            # The local deviation compares this output with the recorded one, place by place, so
            # both need the full length S.
            if at == first:
                first_output = run.full_length(hidden)
                kept = self._prompt.real if run.prompt is None else run.alive()
        hidden = run.full_length(hidden)
        logits = self.head(_picked(hidden, positions))
        return Replayed(logits, first_output, kept, tuple(run.records))


def _picked(states: Tensor, positions: Tensor) -> Tensor:
    rows = torch.arange(states.shape[0], device=states.device)[:, None]
    return states[rows, positions.to(states.device).clamp(min=0)]


def _read_prompt(
    model: PreTrainedModel, inputs: Mapping[str, Any], prompt_length: Tensor | None
) -> PromptTokens:
    family = find(model)
    visual = family.visual_mask(model, inputs["input_ids"], None)
    prompt = read_prompt(visual, inputs.get("attention_mask"), prompt_length)
    return with_grids(family, model, prompt, inputs).to(visual.device)
