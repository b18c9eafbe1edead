"""Carries out a plan on a stock model: `apply(model, plan)` and the handle that it returns.

The model's own code is unchanged. Its cache reports the tokens seen, so that positions, masks and
`generate` stay correct. Every decoder layer receives the model's own mask, rotary tables and
per-token arguments, gathered to the tokens that remain.

A handle changes the model in these places, and one ExitStack takes everything back: `forward` of
the base model and of the decoder (`calls`), pre-hooks on the decoder layers (`hooks`), the
config of attention modules that are read (`attention_reader`; in the vision tower
`images.vision_reader`), the methods that encode images (`images.encoded`), and what a family's
`attach` adds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor import compat, compiled, kernels
from tpcal.plans.executor.architecture import (
    flash_layers,
    shared_layers,
    with_grids,
    without_flash,
)
from tpcal.plans.executor.attention_reader import AttentionReader, probing
from tpcal.plans.executor.cache import (
    check_cache,
    holds_dropped,
    is_empty,
    is_static,
    kv_bytes,
    needs_mask,
)
from tpcal.plans.executor.calls import (
    INNERMOST,
    Call,
    Forward,
    Passes,
    exchange,
    running,
)
from tpcal.plans.executor.cutting import prepare
from tpcal.plans.executor.fit import KERNELS, check, identity_problems, run_problems
from tpcal.plans.executor.hooks import LayerHooks, refuse_chunks, refuse_copies, refuse_training
from tpcal.plans.executor.passes import ForwardPass
from tpcal.plans.executor.prompt import PromptTokens, read_prompt
from tpcal.plans.executor.report import Patch, Report, without_images
from tpcal.plans.executor.static_cache import DynamicCopy
from tpcal.plans.executor.switches import Switch, mark_unpruned
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.families import find
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded, vision_reader
from tpcal.plans.plan_names import beside, load_plan
from tpcal.plans.schema import Plan

__all__ = ["Handle", "Patch", "Report", "apply", "check", "is_applied", "kv_bytes"]

_LOG = logging.getLogger(__name__)
_APPLIED: WeakSet[nn.Module] = WeakSet()
_APPLYING = Lock()
_LAST: ContextVar[WeakKeyDictionary[Handle, Report | None]] = ContextVar("tpcal_last")


def apply(
    model: PreTrainedModel,
    plan: Plan | Path | str | None = None,
    *,
    check: bool = True,
    on_report: Callable[[Report], None] | None = None,
) -> Handle:
    """Carries out the plan in every forward pass of the model until the handle is removed.

    Args:
        model: A model in evaluation mode. PEFT, torch.compile and data parallelism may wrap it.
        plan: The plan, or its name as `tpcal.load_plan` takes it: ``preset:NAME@BUDGET``, a file,
            a folder or a repository on the Hub. A preset is scaled to the depth of the model, and
            its budget is met for 576 visual tokens. None takes the plan beside the weights: the
            ``tpcal_plan.yaml`` of the folder, or of the repository at the revision, that the model
            was loaded from.
        check: Refuse a plan that was made for a model of another structure.
        on_report: Called with the report of each pass that began a sequence or saw an image, at
            the end of the pass, in its thread and context. An error that it raises ends the call.

    Returns:
        The handle: a context manager that restores the model, with the report of the last prefill.

    Raises:
        FitError: The plan does not fit the model; the error names every problem.
        UsageError: A plan is already applied to this model, or there is no plan of this name.

    Example:
        >>> import tpcal
        >>> from transformers import AutoModelForImageTextToText
        >>> from tpcal.calibrate.embedded import FOLDER  # or the name of a model on the Hub
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> plan = tpcal.load_preset("dart-128", n_layers=8)  # or tpcal.load_plan("plan.yaml")
        >>> with tpcal.apply(model, plan) as handle:
        ...     pass  # model.generate(**inputs) as always
    """
    model = unwrapped(model)
    plan = plan if isinstance(plan, Plan) else _found(plan, model)
    problems = identity_problems(plan, model) if check else []
    problems += run_problems(plan, model)
    if problems:
        raise FitError(plan.name or "The plan", problems)
    compat.warn_untried()
    return Handle(model, plan, on_report)


def _found(name: Path | str | None, model: PreTrainedModel) -> Plan:
    """The plan of a name, or the plan beside the model's weights."""
    if name is not None:
        return load_plan(name, len(find(model).layers(model)))
    revision = getattr(model.config, "_commit_hash", None)
    return beside(str(getattr(model.config, "_name_or_path", None) or ""), revision)


def is_applied(model: PreTrainedModel) -> bool:
    """Whether a plan is applied to this model now."""
    model = unwrapped(model)
    return find(model).decoder(model) in _APPLIED


class Handle:
    """A plan applied to a model. Leaving its context, or `remove`, restores the model.

    Threads may call the model at the same time, as without a plan.

    Attributes:
        plan: The plan.

    Example:
        >>> import tpcal
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> from tpcal.calibrate.embedded import FOLDER
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> processor = AutoProcessor.from_pretrained(FOLDER)
        >>> image, question = Image.new("RGB", (96, 96), "grey"), "<image>Is there a red circle?"
        >>> inputs = processor(images=image, text=question, return_tensors="pt")
        >>> with tpcal.apply(model, tpcal.load_preset("dart-128", n_layers=8)) as handle:
        ...     output = model(**inputs)
        >>> handle.last.lengths  # tokens that each layer got
        (151, 40, 40, 40, 40, 40, 40, 40)
    """

    def __init__(
        self, model: PreTrainedModel, plan: Plan, on_report: Callable[[Report], None] | None = None
    ) -> None:
        self.plan = plan
        self._model = model
        self._on_report = on_report
        self._family: Family = find(model)
        self._cuts = prepare(plan.cuts, plan.round_to, plan.scope)
        self._shared = shared_layers(self._family, model)
        self._flash = flash_layers(self._family, model)
        self._switch = Switch(plan.name or "the plan")
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
        """The report of the last pass that began a sequence or saw an image, in this context.

        A context is a thread or, in asyncio, a task. None before its first such pass, and after
        one that `off` or `bypassed` left unpruned. A function in `asyncio.to_thread` runs in a
        copy of the caller's context: it sees the caller's report until its own first pass, and the
        caller does not see its reports; ``on_report`` of `apply` gets all of them.
        """
        reports = _LAST.get(None)
        return None if reports is None else reports.get(self)

    @property
    def is_off(self) -> bool:
        """Whether sequences that begin now are left unpruned, by `off` or by TPCAL_OFF=1."""
        return self._switch.is_off

    def off(self) -> None:
        """Leaves all sequences that begin from now on unpruned; any thread may call it.

        A sequence whose cache has lost tokens goes on with the plan, and one that began unpruned
        goes on unpruned, also after `on`.
        """
        self._switch.turn(off=True)

    def on(self) -> None:
        """Carries the plan out again; it stays off if TPCAL_OFF was set when it was applied."""
        self._switch.turn(off=False)

    def bypassed(self) -> AbstractContextManager[None]:
        """A context in which sequences begin unpruned, as after `off`, for one request.

        Only the calling thread or task is concerned, and what `asyncio.to_thread` calls from it.

        Example:
            >>> with handle.bypassed():  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        return self._switch.bypassed()

    def remove(self) -> None:
        """Restores the model; a second call does nothing.

        Passes that run keep the plan to their end, and the method waits for them. Passes that
        begin meanwhile run without the plan. Called from inside a pass, it returns at once, and
        the model is restored after the pass.
        """
        self._passes.close(wait=running(self, in_pass=True) is None)

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _attach(self, undo: ExitStack) -> None:
        model, family = self._model, self._family
        decoder, layers = self._decoder, self._layers
        with _APPLYING:
            if decoder in _APPLIED:
                raise UsageError(
                    "Only one plan can be applied to a model at a time; call remove() on the "
                    "first."
                )
            _APPLIED.add(decoder)
        undo.callback(_APPLIED.discard, decoder)
        read = [at - 1 for at, cut in self._cuts.items() if cut.reads_attention]
        modules = {at: family.attention(layers[at]) for at in read}
        others = without_flash(family, model, min(self._cuts, default=len(layers)))
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
        family.attach(model, self._run, undo)
        compiled.bound((model, base, decoder, *layers), len(layers), undo)
        refuse_chunks(model, undo)

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
        # One token, as in decoding, is never an image, so its ids are not looked at: that would
        # wait for the device in each step.
        ids, embeds = outer.inputs.get("input_ids"), outer.inputs.get("inputs_embeds")
        n_rows, length = _size(kwargs, ids, embeds)
        cache = compat.given_cache(kwargs)
        unpruned = self._switch.leaves_unpruned(cache)
        unread = length == 1 or unpruned
        prompt = None if unread else self._read_prompt(outer.inputs, ids, embeds)
        flash = kernels.is_flash(self._known_kernel())
        masks = kwargs.get("attention_mask") is not None or not (flash or self._kernel == "sdpa")
        run = ForwardPass(
            self._cuts,
            prompt,
            length,
            final_norm=self._final_norm,
            shared=self._shared,
            probes=self._probes,
            flash=self._flash if flash else None,
        )
        # Decode steps of equal rows run without layer hooks; everything else needs them.
        self._hooks.prepare(run, needed=length > 1 or masks or needs_mask(cache))
        call = Call(self, outer.inputs, run, unpruned=unpruned)
        call.has_cache = cache is not None
        call.n_new = n_rows if is_empty(cache) else 0
        if length > 1 and is_static(cache) and (run.cuts or holds_dropped(cache)):
            call.copy = self._dynamic_copy(cache, length)
        return call

    def _dynamic_copy(self, cache: Cache, length: int) -> DynamicCopy:
        """A copy of a static cache that can hold what a pass of several tokens leaves."""
        check_cache(cache)
        if self._kernel not in KERNELS:
            raise UsageError(
                "A static cache must go with the attention implementation sdpa or eager to run a "
                f"plan; got {self._kernel}. Leave out cache_implementation, or call "
                'model.set_attn_implementation("sdpa").'
            )
        return DynamicCopy(cache, length)

    def _known_kernel(self) -> str:
        """The text model's attention kernel; `set_attn_implementation` may have changed it."""
        kernel = str(self._text._attn_implementation)
        if kernel != self._kernel:
            kernels.require(kernel)
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
        mark_unpruned(output, call.unpruned)
        # Callers expect one state per token of the pass: labels and logits_to_keep count on it.
        if run.survivors.places is None:
            return output, report
        if isinstance(output, tuple):
            return (run.full_length(output[0]), *output[1:]), report
        output.last_hidden_state = run.full_length(output.last_hidden_state)
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
        if report is not None and self._on_report is not None:
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

    def _read_prompt(
        self, inputs: Mapping[str, Any], ids: Tensor | None, embeds: Tensor | None
    ) -> PromptTokens | None:
        if ids is None and embeds is None:
            return None  # the decoder was called without the base model
        visual = self._family.visual_mask(self._model, ids, embeds)
        mask = inputs.get("attention_mask")
        prompt = read_prompt(visual, mask if _is_flat(mask) else None)
        if max(prompt.n_visual) == 0:
            if ids is None:
                _LOG.warning("No visual token was found in inputs_embeds, so nothing is pruned.")
            return None
        prompt = with_grids(self._family, self._model, prompt, inputs)
        if self._vision is None:
            return prompt
        return replace(prompt, vision=self._vision.of(prompt, inputs))


def _size(kwargs: Mapping[str, Any], ids: Tensor | None, embeds: Tensor | None) -> tuple[int, int]:
    """Numbers of rows and of tokens of a pass."""
    given = kwargs.get("inputs_embeds")
    given = given if given is not None else kwargs.get("input_ids")
    for tensor in (given, ids, embeds):
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1]
    raise UsageError("The decoder must be called with input_ids or inputs_embeds by keyword.")


def _is_flat(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2
