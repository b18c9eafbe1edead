"""Tape: one unpruned forward pass, recorded so that a cut costs only the layers after it.

A replay makes its cuts with the executor's own code (`tpcal.plans.executor.passes`), on
teacher-forced input: prompt and answer in one sequence. Selection looks at the prompt only, as
production prefill does.
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
from tpcal.plans.executor.architecture import shared_layers, with_grids
from tpcal.plans.executor.attention_reader import AttentionReader, Capture, probing
from tpcal.plans.executor.cutting import CutRecord, PreparedCut, attention_request, prepare
from tpcal.plans.executor.handle import is_applied
from tpcal.plans.executor.passes import ForwardPass
from tpcal.plans.executor.prompt import PromptTokens, read_prompt
from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.families import find
from tpcal.plans.images import vision_reader
from tpcal.plans.schema import Cut

_STATES = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values")
"""What the decoder is called with and only its own code reads, before its first layer."""


@dataclass(frozen=True)
class Replayed:
    """What a replay with cuts gives."""

    logits: Tensor
    """[B, A, V] at the positions asked for."""
    first_output: Tensor
    """[B, S, D] output of the first cut's layer; zeros where tokens left."""
    kept_mask: Tensor
    """[B, S] bool, tokens that entered the first cut's layer."""
    records: tuple[CutRecord, ...]
    """What each cut did."""


@dataclass(frozen=True)
class _Call:
    """What the model called a decoder layer with, beside the states."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True)
class Recording:
    """All that replays read of a pass; a `tpcal.calibrate.tape_store.Store` can keep it."""

    prompt: PromptTokens
    states: Mapping[int, Tensor]
    calls: tuple[_Call, ...]
    decoder_inputs: Mapping[str, Any]
    captures: Mapping[int, Capture]

    def of_layer_0(self) -> Recording:
        """What whole plans read: the states of layer 0, B·S·D numbers, and the layers' arguments.

        `Tape.answer_states` has to be taken before, as the last output is left out.
        """
        return replace(self, states={0: self.states[0]}, captures={})


class Tape:
    """A recorded pass. Make one with `Tape.record`.

    Memory: with every layer, B·S·(D + key width) numbers a layer and B·T·N for what the text's
    tokens look at, one to five in a hundred of it; otherwise B·S·D twice. Masks of uneven rows
    take B·S·S bytes and more, for all layers together.
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
            model: In evaluation mode, with no plan applied.
            inputs: Of the model, with input_ids; padded on either side, with a 2-D attention_mask.
            prompt_length: [B] real tokens up to the end of the prompt; None where all of it is
                prompt.
            every_layer: Keep the input of every layer; otherwise of layer 0 only, for whole plans.

        Raises:
            UsageError: A plan is applied to the model, or it trains.
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
            probes: Mapping[int, AttentionReader] = {}
            seen = None
            if max(prompt.n_visual) and vision_reader.problem(family, model) is None:
                seen = undo.enter_context(vision_reader.reading(family, model))
            if every_layer and max(prompt.n_visual):
                modules = {at: family.attention(layer) for at, layer in enumerate(layers)}
                probes = undo.enter_context(probing(modules))
                everything = Survivors(None, None, prompt.n_visual)
                wanted = attention_request(prompt, everything, text=True, visual_queries=True)
                for probe in probes.values():
                    probe.ask(wanted)

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
        """L."""
        return len(self._layers)

    @property
    def batch_size(self) -> int:
        """B."""
        return self._prompt.n_rows

    @property
    def text_mask(self) -> Tensor:
        """[B, S] bool, real text tokens of prompt and answer."""
        return self._prompt.real & ~self._prompt.visual

    @property
    def visual_mask(self) -> Tensor:
        """[B, S] bool."""
        return self._prompt.visual

    def state(self, layer: int) -> Tensor:
        """[B, S, D] input of a layer; for ``n_layers`` the last output, before the final norm."""
        if layer not in self._states:
            raise ValueError(f"layer must be recorded ({sorted(self._states)}); got {layer}.")
        return self._states[layer]

    @torch.no_grad()
    def logits(self, positions: Tensor) -> Tensor:
        """[B, A, V] of the unpruned pass at ``positions`` [B, A]; negative ones give any value."""
        return self.head(self.answer_states(positions))

    def answer_states(self, positions: Tensor) -> Tensor:
        """[B, A, D] the last output at ``positions``: all that `logits` needs, and far less."""
        return _picked(self.state(self.n_layers), positions)

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """[B, A, V] logits of last outputs [B, A, D], through the final norm."""
        return self._family.logits(self._model, self._family.final_norm(self._model)(states))

    @torch.no_grad()
    def replay(self, cuts: Sequence[Cut], positions: Tensor) -> Replayed:
        """The pass with these cuts, run from the first cut's layer on.

        Args:
            cuts: Layers rising; at least one.
            positions: [B, A] where logits are wanted; negative ones give any value.

        Raises:
            ValueError: No cut, or a layer the model has not.
            UsageError: A selector needs the vision tower's attention, which cannot be read.
        """
        prepared = prepare(cuts)
        if not prepared or max(prepared) >= self.n_layers:
            raise ValueError(f"cuts must be at layers below {self.n_layers}; got {list(cuts)}.")
        self._check_vision(prepared.values())
        first = min(prepared)
        start = first if first in self._states else 0
        asked = [at - 1 for at, cut in prepared.items() if cut.reads_attention and at > start]
        probed = {at: self._family.attention(self._layers[at]) for at in asked}
        captures = {first - 1: self._captures[first - 1]} if first - 1 in self._captures else {}
        with ExitStack() as undo:
            probes = undo.enter_context(probing(probed))
            run = ForwardPass(
                prepared,
                self._prompt if max(self._prompt.n_visual) else None,
                self._prompt.visual.shape[1],
                final_norm=self._family.final_norm(self._model),
                shared=shared_layers(self._family, self._model),
                probes=probes,
                captures=captures,
            )
            self._family.attach(self._model, lambda: run, undo)
            return self._run(run, start, first, positions)

    def attention_mass(self, layer: int) -> tuple[Tensor, Tensor]:
        """[B] attention mass at ``layer`` from text to visual tokens, [B] back; nan without them.

        A conditional cut before layer l looks at layer l - 1.

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

        A state turns where the cosine between the layer's input and output is below ``tau``.

        Source:
            Li et al. 2025 (BTP), arXiv 2505.22038, the measure that chooses their pruning layers.
        """
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
        stores: dict[
            int, Any
        ] = {}  # layers may write into a store they share; the tape's own stays
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
    return with_grids(family, model, prompt, inputs)
