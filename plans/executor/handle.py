"""Carries out a plan on a stock model: `apply(model, plan)`. The only file that hooks a model.

The model's own code never learns that tokens left. Its cache reports the tokens seen, so
positions, masks and `generate` stay right; every decoder layer receives the model's own mask,
rotary tables and per-token arguments gathered to the tokens that are still there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import RLock, local
from types import TracebackType
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor import compiled, gather
from tpcal.plans.executor.attention_reader import AttentionReader, probing
from tpcal.plans.executor.cache import check_cache, kv_bytes, needs_mask
from tpcal.plans.executor.passes import ForwardPass, prepare, shared_layers, with_grids
from tpcal.plans.executor.report import Patch, Report, without_images
from tpcal.plans.executor.serial_calls import Forward, in_turn
from tpcal.plans.families import find, identity
from tpcal.plans.families.base import Family
from tpcal.plans.images import encoded, vision_reader
from tpcal.plans.plan_rules import is_sound, problems_at
from tpcal.plans.schema import Plan
from tpcal.plans.selectors import create

__all__ = ["Handle", "Patch", "Report", "apply", "check", "is_applied", "kv_bytes"]

_LOG = logging.getLogger(__name__)
_KERNELS = ("sdpa", "eager")
_APPLIED: WeakSet[nn.Module] = WeakSet()


def check(plan: Plan, model: PreTrainedModel) -> list[str]:
    """Why the plan does not fit the model, one sentence each; empty where it fits."""
    return _identity_problems(plan, model) + _problems(plan, model)


def apply(model: PreTrainedModel, plan: Plan, *, check: bool = True) -> Handle:
    """Carries out the plan in every forward pass of the model until the handle is removed.

    Args:
        model: A model in evaluation mode.
        plan: The cuts.
        check: Refuse a plan that was made for a model of another structure.

    Raises:
        FitError: The plan does not fit; names every problem.
        UsageError: A plan is applied to this model already.
    """
    problems = _identity_problems(plan, model) if check else []
    problems += _problems(plan, model)
    if problems:
        raise FitError(plan.name or "The plan", problems)
    return Handle(model, plan)


def is_applied(model: PreTrainedModel) -> bool:
    """Whether a plan is applied to this model now."""
    return find(model).decoder(model) in _APPLIED


class _Thread(local):
    """What a thread's own pass goes by, and what its last one did."""

    def __init__(self) -> None:
        self.inputs: Mapping[str, Any] = {}
        self.run: ForwardPass | None = None
        self.n_new = 0
        """Rows that the pass begins; 0 where it goes on."""
        self.last: Report | None = None


class Handle:
    """A plan at work on a model. Leaving its context, or `remove`, restores the model.

    Threads may call the model at once: its passes wait for each other.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan) -> None:
        self.plan = plan
        self._model = model
        self._family: Family = find(model)
        self._cuts = prepare(plan.cuts, plan.round_to)
        self._shared = shared_layers(self._family, model)
        self._lock = RLock()
        self._thread = _Thread()
        self._probes: Mapping[int, AttentionReader] = {}
        self._vision: vision_reader.Vision | None = None
        self._watching: list[RemovableHandle] = []
        self._text = model.config.get_text_config(decoder=True)
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._attach(undo)
            self._undo = undo.pop_all()

    @property
    def last(self) -> Report | None:
        """What the last pass in this thread that began a sequence or saw an image did.

        None before the thread's first; another thread's reports are not seen.
        """
        return self._thread.last

    def remove(self) -> None:
        """Restores the model, after the pass that may be running; a second call does nothing."""
        with self._lock:
            self._undo.close()

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
        decoder, layers = family.decoder(model), family.layers(model)
        if decoder in _APPLIED:
            raise UsageError(
                "Only one plan can be applied to a model at a time; call remove() on the first."
            )
        _APPLIED.add(decoder)
        undo.callback(_APPLIED.discard, decoder)
        read = [at - 1 for at, cut in self._cuts.items() if cut.reads_attention]
        modules = {at: family.attention(layers[at]) for at in read}
        self._probes = undo.enter_context(probing(modules))
        base = family.base(model)
        for module in (model, base, decoder):
            encoded.exchange(module, "__reduce_ex__", _refuse_copy, undo)
        in_turn(base, self._lock, self._run_base, undo)
        in_turn(decoder, self._lock, self._run_decoder, undo)
        undo.callback(self._watch, False)
        encoded.remember(base, undo)
        encoded.pass_on((model, base), undo)
        if any("vision" in cut.needs for cut in self._cuts.values()):
            self._vision = undo.enter_context(vision_reader.reading(family, model))
        family.attach(model, lambda: self._thread.run, undo)
        compiled.bound((model, base, decoder, *layers), len(layers), undo)
        _refuse_chunks(model, undo)

    def _watch(self, needed: bool) -> None:
        """Hooks the layers, before their other hooks, or unhooks them: every call of one costs."""
        if needed == bool(self._watching):
            return
        for hook in self._watching:
            hook.remove()
        self._watching = [
            layer.register_forward_pre_hook(
                compiled.outside(self._layer_hook(at)), with_kwargs=True, prepend=True
            )
            for at, layer in enumerate(self._family.layers(self._model) if needed else ())
        ]

    @compiled.around
    def _run_base(self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # before images are encoded: in training a tower's batch norms would learn from them
        _refuse_training(self._family.decoder(self._model))
        mine = self._thread
        outer = mine.inputs
        mine.inputs = {"input_ids": args[0], **kwargs} if args else kwargs
        try:
            return forward(*args, **kwargs)
        finally:
            mine.inputs = outer

    @compiled.around
    def _run_decoder(
        self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        decoder = self._family.decoder(self._model)
        self._before_decoder(decoder, args, kwargs)
        output = changed = None
        try:
            output = forward(*args, **kwargs)
        finally:
            changed = self._after_decoder(decoder, args, output)
        return output if changed is None else changed

    @compiled.outside
    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        _refuse_training(module)
        mine = self._thread
        if mine.run is not None:
            raise UsageError(
                "A model with a plan cannot be called from inside its own forward pass, by a hook "
                "for instance; call it before or afterwards."
            )
        ids, embeds = mine.inputs.get("input_ids"), mine.inputs.get("inputs_embeds")
        n_rows, length = _size(kwargs, ids, embeds)
        prompt = None if length == 1 else self._read_prompt(ids, embeds)
        cache = kwargs.get("past_key_values")
        mine.n_new = n_rows if cache is None or cache.get_seq_length() == 0 else 0
        masks = (
            kwargs.get("attention_mask") is not None or self._text._attn_implementation != "sdpa"
        )
        self._watch(length > 1 or masks or needs_mask(cache))
        mine.run = ForwardPass(
            self._cuts,
            prompt,
            length,
            final_norm=self._family.final_norm(self._model),
            shared=self._shared,
            probes=self._probes,
        )

    @compiled.outside
    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        mine = self._thread
        run, mine.run = mine.run, None
        if run is None or output is None:  # None: the forward failed
            return None
        if run.prompt is not None:
            seen = run.prompt.n_visual, run.prompt.grids
            mine.last = Report(tuple(run.records), tuple(run.lengths), *seen)
        elif mine.n_new:
            mine.last = without_images(self._cuts.values(), mine.n_new)
        if run.survivors.places is None:
            return None
        if isinstance(output, tuple):
            return (run.full_length(output[0]), *output[1:])
        output.last_hidden_state = run.full_length(output.last_hidden_state)
        return output

    def _layer_hook(self, at: int) -> Callable[..., Any]:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self._thread.run
            if run is None or run.leaves_alone(at, kwargs):
                return None
            if at == 0 and run.cuts:
                check_cache(kwargs.get("past_key_values"))
            hidden, *others = args or (kwargs["hidden_states"],)
            hidden, gathered, rest = run.before_layer(at, hidden, kwargs, tuple(others))
            if args:
                return (hidden, *rest), gathered
            return args, {**gathered, "hidden_states": hidden}

        return before_layer

    def _read_prompt(
        self, ids: Tensor | None, embeds: Tensor | None
    ) -> gather.PromptTokens | None:
        if ids is None and embeds is None:
            return None  # the decoder was called by itself
        visual = self._family.visual_mask(self._model, ids, embeds)
        inputs = self._thread.inputs
        mask = inputs.get("attention_mask")
        prompt = gather.read_prompt(visual, mask if _is_flat(mask) else None)
        if max(prompt.n_visual) == 0:
            if ids is None:
                _LOG.warning("No visual token was found in inputs_embeds, so nothing is pruned.")
            return None
        prompt = with_grids(self._family, self._model, prompt, inputs)
        if self._vision is None:
            return prompt
        return replace(prompt, vision=self._vision.of(prompt, inputs))


def _identity_problems(plan: Plan, model: PreTrainedModel) -> list[str]:
    if plan.model is None:
        return []
    try:
        mine = identity(model)
    except UsageError:
        return []  # named by _problems
    problems = []
    for field in ("n_layers", "family", "architecture", "fingerprint"):
        made_for, got = getattr(plan.model, field), getattr(mine, field)
        if made_for is not None and made_for != got:
            problems.append(
                f"model.{field} must be {got}, as this model has; got {made_for}. "
                "Calibrate this model; in Python, check=False applies it all the same."
            )
    return problems


def _problems(plan: Plan, model: PreTrainedModel) -> list[str]:
    try:
        family = find(model)
    except UsageError as error:
        return [str(error)]
    ruled = problems_at(plan, len(family.layers(model)))
    problems = [p for p in ruled if ": no selector is called" not in p]  # `create` tells it below
    problems += family.problems(model)
    allowed = family.cut_layers(model)
    for i, cut in enumerate(plan.cuts):
        if not is_sound(cut):
            continue
        if cut.layer not in allowed and cut.layer < len(family.layers(model)):
            problems.append(
                f"cuts[{i}].layer must be in {allowed.start}..{allowed.stop - 1} for "
                f"{type(model).__name__}; got {cut.layer}."
            )
        if cut.selector is None:
            continue
        try:
            selector = create(cut.selector, cut.params)
        except UsageError as error:
            problems.append(f"cuts[{i}].selector: {error}")
            continue
        unread = vision_reader.problem(family, model) if "vision" in selector.needs else None
        if unread is not None:
            problems.append(f"cuts[{i}].selector: {cut.selector} {unread}")
        if cut.layer < selector.min_layer:
            problems.append(
                f"cuts[{i}].layer must be at least {selector.min_layer} for {cut.selector}, which "
                f"reads the attention of the layer before; got {cut.layer}."
            )
    return problems + _model_problems(model)


def _model_problems(model: PreTrainedModel) -> list[str]:
    problems = []
    text = model.config.get_text_config(decoder=True)
    kernel = text._attn_implementation
    if kernel not in _KERNELS:
        problems.append(
            f"The attention implementation must be {' or '.join(_KERNELS)}; got {kernel}. "
            'Load the model with attn_implementation="sdpa".'
        )
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    if len(places - {"cpu", "disk"}) > 1:  # what is kept on those is brought to the device
        problems.append(
            f"The model must compute on one device; got a device_map over {sorted(places)}. Name "
            'one device, or let max_memory={0: …, "cpu": …} keep the rest in CPU memory.'
        )
    return problems


def _refuse_training(decoder: nn.Module) -> None:
    if decoder.training:
        raise UsageError("The model must be in evaluation mode to run a plan; call model.eval().")


def _refuse_copy(protocol: object) -> Any:
    raise UsageError(
        "A model with a plan cannot be copied or pickled, as the copy would run on the original's "
        "plan. Call remove(), copy the model, and apply the plan to each."
    )


def _refuse_chunks(model: PreTrainedModel, undo: ExitStack) -> None:
    """Chunked prefill would choose tokens before the question is read; nothing else shows it."""
    prefill = getattr(model, "_prefill", None)
    if prefill is None or "_prefill" in vars(model):
        return

    def whole_prefill(input_ids: Tensor, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        if generation_config.prefill_chunk_size is not None:
            raise UsageError(
                "prefill_chunk_size must be None to run a plan, as the whole prompt decides which "
                f"visual tokens stay; got {generation_config.prefill_chunk_size}."
            )
        return prefill(input_ids, generation_config, *args, **kwargs)

    model._prefill = whole_prefill
    undo.callback(delattr, model, "_prefill")


def _size(kwargs: Mapping[str, Any], ids: Tensor | None, embeds: Tensor | None) -> tuple[int, int]:
    """Rows and tokens of a pass."""
    given = kwargs.get("inputs_embeds")
    given = given if given is not None else kwargs.get("input_ids")
    for tensor in (given, ids, embeds):
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1]
    raise UsageError("The decoder must be called with input_ids or inputs_embeds by keyword.")


def _is_flat(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2
