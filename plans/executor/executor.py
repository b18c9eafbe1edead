"""The executor: what runs around each call of a model's base, of its decoder and of its layers.

The model's own code is unchanged. Its cache reports the tokens seen, so that positions, masks and
`generate` stay correct. Every decoder layer receives the model's own mask, rotary tables and
per-token arguments, gathered to the tokens that remain.

The executor changes the model in these places, and one ExitStack takes everything back: `forward`
of the base model and of the decoder (`calls`), pre-hooks on the decoder layers (`hooks`), the
config of attention modules that are read (`attention_reader`; in the vision tower
`images.vision_reader`), the methods that encode images (`images.encoded`), and what a family's
`attach` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import Cache, PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import (
    compat,
    compiled,
    drafts,
    kernels,
    labels,
    rope_deltas,
    watched_calls,
)
from tpcal.plans.executor.applied_models import register
from tpcal.plans.executor.architecture import (
    flash_layers,
    shared_layers,
    without_flash,
)
from tpcal.plans.executor.attention_reader import AttentionReader, probing
from tpcal.plans.executor.cache import check_cache, is_empty, needs_mask, stand_in
from tpcal.plans.executor.calls import (
    INNERMOST,
    Call,
    Forward,
    Passes,
    exchange,
    running,
)
from tpcal.plans.executor.cutting import prepare
from tpcal.plans.executor.decoder_inputs import first_visual, prompt_of, size
from tpcal.plans.executor.hooks import LayerHooks, refuse_chunks, refuse_copies, refuse_training
from tpcal.plans.executor.passes import DecoderParts, ForwardPass
from tpcal.plans.executor.report import Report, without_images
from tpcal.plans.executor.switches import Switch, first_unpruned, mark_unpruned
from tpcal.plans.families import find
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded, vision_reader
from tpcal.plans.plan_records import Plan

_LAST: ContextVar[WeakKeyDictionary[Executor, Report | None]] = ContextVar("tpcal_last")


class Executor:
    """Carries out a plan in every call of a model, from its construction until `remove`.

    Args:
        model: The model, without wrappers.
        plan: A plan that fits it.
        on_report: As `tpcal.apply`.

    Attributes:
        switch: Leaves requests unpruned.

    Raises:
        UsageError: A plan is already applied to this model.
    """

    def __init__(
        self, model: PreTrainedModel, plan: Plan, on_report: Callable[[Report], None] | None = None
    ) -> None:
        self._model = model
        self._on_report = on_report
        self._family: Family = find(model)
        self._cuts = prepare(plan)
        self._shared = shared_layers(self._family, model)
        self._flash = flash_layers(self._family, model)
        self.switch = Switch(plan.name or "the plan")
        self._probes: Mapping[int, AttentionReader] = {}
        self._vision: vision_reader.Vision | None = None
        # Found once: looking for them takes longer than everything else around a decode step.
        self._decoder = self._family.decoder(model)
        self._layers = self._family.layers(model)
        self._final_norm = self._family.final_norm(model)
        self._hooks = LayerHooks(self._layers, self._layer_hook)
        self._text = model.config.get_text_config(decoder=True)
        self._kernel = self._text._attn_implementation
        self._undo = ExitStack()
        self._passes = Passes(lambda: self._undo.close())
        with ExitStack() as undo:
            self._attach(undo)
            self._undo = undo.pop_all()

    @property
    def last(self) -> Report | None:
        """The report of the last pass that began a sequence or saw an image, in this context."""
        reports = _LAST.get(None)
        return None if reports is None else reports.get(self)

    def remove(self) -> None:
        """Restores the model once no pass runs, and waits for that unless called from a pass."""
        self._passes.close(wait=running(self, in_pass=True) is None)

    def _attach(self, undo: ExitStack) -> None:
        model, family = self._model, self._family
        decoder, layers = self._decoder, self._layers
        register(decoder, undo)
        read = [at - 1 for at, cut in self._cuts.items() if cut.reads_attention]
        modules = {at: family.attention(layers[at]) for at in read}
        others = without_flash(family, model, self._cuts)
        self._probes = undo.enter_context(probing(modules, others))
        base = family.base(model)
        refuse_copies((model, base, decoder), undo)
        exchange(base, self._run_base, undo)
        exchange(decoder, self._run_decoder, undo)
        undo.callback(self._hooks.remove)
        encoded.remember(base, undo)
        encoded.pass_on((model, base), undo)
        if any("vision" in cut.needs for cut in self._cuts.values()):
            self._vision = undo.enter_context(vision_reader.reading(family, model))
        rope_deltas.keep(model, base, self, undo)
        family.attach(model, self._run, undo)
        compiled.bound((model, base, decoder, *layers), len(layers), undo)
        refuse_chunks(model, undo)
        drafts.note_prompts(model, undo)
        labels.check_labels(model, self, undo)

    @compiled.around
    def _run_base(self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call, before = self._before_base(args, kwargs), INNERMOST.get()
        try:
            INNERMOST.set(call)
            return forward(*args, **kwargs)
        finally:
            INNERMOST.set(before)
            if self._vision is not None:
                self._vision.forget()

    @compiled.outside
    def _before_base(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        # Checked before images are encoded: in training mode a tower's batch norms would learn
        # from them
        refuse_training(self._decoder)
        self._outer()
        return Call(self, {"input_ids": args[0], **kwargs} if args else kwargs)

    @compiled.around
    def _run_decoder(
        self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        mark, before, call, report = object(), INNERMOST.get(), None, None
        try:
            if not self._passes.enter(mark):
                return forward(*args, **kwargs)
            call = self._before_decoder(kwargs)
            INNERMOST.set(call)
            output = forward(*args, **call.arguments(kwargs))
            output, report = self._after_decoder(call, output)
        finally:
            INNERMOST.set(before)
            self._clean(call)
            self._passes.leave(mark)
        if report is not None or (call.unpruned and call.n_new):
            self._tell(report)
        return output

    @compiled.outside
    def _before_decoder(self, kwargs: Mapping[str, Any]) -> Call:
        refuse_training(self._decoder)
        outer = self._outer() or Call(self, {})
        n_rows, length = size(kwargs, outer.inputs)
        cache = compat.given_cache(kwargs)
        unpruned = self.switch.leaves_unpruned(cache)
        prompt = None
        # One token, as in decoding, is never an image, so its ids are not looked at: that would
        # wait for the device in each step.
        if length != 1 and not unpruned:
            prompt = prompt_of(self._family, self._model, outer.inputs, self._vision)
        flash = kernels.is_flash(self._known_kernel())
        masks = kwargs.get("attention_mask") is not None or not (flash or self._kernel == "sdpa")
        parts = DecoderParts(
            self._final_norm, self._shared, self._probes, self._flash if flash else {}
        )
        run = ForwardPass(self._cuts, prompt, length, parts)
        # Decode steps of equal rows run without layer hooks; everything else needs them.
        self._hooks.prepare(run, needed=length > 1 or masks or needs_mask(cache))
        call = Call(self, outer.inputs, run, unpruned=unpruned)
        if unpruned:
            call.first_unpruned = self._first_unpruned(cache, outer.inputs, length)
        call.has_cache = cache is not None
        call.n_new = n_rows if is_empty(cache) else 0
        call.copy = stand_in(cache, length, prunes=bool(run.cuts), kernel=self._kernel)
        return call

    def _first_unpruned(
        self, cache: Cache | None, inputs: Mapping[str, Any], length: int
    ) -> int | None:
        """Place of the first image in a sequence, after a pass that a switch leaves unpruned."""
        known = first_unpruned(cache)
        if known is not None or length == 1:
            return known
        found = first_visual(self._family, self._model, inputs)
        n_before = 0 if cache is None else int(cache.get_seq_length())
        return None if found is None else n_before + found

    def _known_kernel(self) -> str:
        """The text model's attention kernel; `set_attn_implementation` may have changed it."""
        kernel = str(self._text._attn_implementation)
        if kernel != self._kernel:
            kernels.require(kernel, kernels.devices(self._model))
            self._kernel = kernel
        return kernel

    @compiled.outside
    def _after_decoder(self, call: Call, output: Any) -> tuple[Any, Report | None]:
        """The output with a state for every token of the pass, and the report if there is one."""
        run = call.run
        assert run is not None
        if call.copy is not None:
            output = call.copy.written_back(output)
        counted = run.n_called if run.prompt is not None else None
        compat.check_pass(output, counted, len(self._layers))
        report = None
        if run.prompt is not None:
            seen = run.prompt.n_visual, run.prompt.grids
            report = Report(tuple(run.records), tuple(run.lengths), *seen)
        elif call.n_new and not call.unpruned:
            report = without_images(self._cuts.values(), call.n_new)
        watched_calls.note(call, report)
        mark_unpruned(output, call.first_unpruned)
        rope_deltas.note(call, output)
        labels.note(self, run.survivors, run.length)
        # Callers expect one state per token of the pass: labels and logits_to_keep count on it.
        if run.survivors.places is None:
            return output, report
        if isinstance(output, tuple):
            return (run.full_length(output[0]), *output[1:]), report
        output.last_hidden_state = run.full_length(output.last_hidden_state)
        if output.hidden_states:  # of which the last entry is the same, and the others are short
            output.hidden_states = (*output.hidden_states[:-1], output.last_hidden_state)
        return output, report

    @compiled.outside
    def _clean(self, call: Call | None) -> None:
        """Lets go of what a pass needed; it may have failed."""
        if call is not None and call.run is not None:
            self._hooks.spare(call.run)
            call.run.forget()

    @compiled.outside
    def _tell(self, report: Report | None) -> None:
        reports = WeakKeyDictionary(_LAST.get({}))
        reports[self] = report
        _LAST.set(reports)
        if report is None or self._on_report is None or watched_calls.in_shadow(self):
            return
        self._on_report(report)

    def _run(self) -> ForwardPass | None:
        """The pass that runs in this context."""
        call = running(self)
        return None if call is None else call.run

    def _outer(self) -> Call | None:
        """The call around the one that begins."""
        if running(self, in_pass=True) is not None:
            raise UsageError(
                "A model with a plan cannot be called from inside its own forward pass, by a hook "
                "for instance; call it before or afterwards."
            )
        return running(self)

    def _layer_hook(self, at: int) -> Callable[..., Any]:
        # Without kwargs, another thread registers or removes the hook at this moment: a pass that
        # needs it has it from before its first layer to after its last one.
        def before_layer(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> Any:
            call = running(self)
            if call is None or call.run is None or kwargs is None:
                return None
            run = call.run
            run.n_called += 1
            if run.leaves_alone(at, kwargs):
                return None
            cache = compat.given_cache(kwargs, args, expected=call.has_cache)
            if at == 0 and run.cuts:
                check_cache(cache)
            hidden, *others = args or (kwargs["hidden_states"],)
            hidden, gathered, rest = run.before_layer(at, hidden, kwargs, tuple(others))
            if args:
                return (hidden, *rest), gathered
            return args, {**gathered, "hidden_states": hidden}

        return before_layer
