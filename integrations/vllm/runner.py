"""vLLM's V1 model runner with a plan.

A step without visual tokens leaves the model alone: the layers of each stage only get other
attention metadata, for the tokens that they hold. In a step with visual tokens, hooks before the
decoder layers also gather the tokens that are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from tpcal.integrations.vllm import kv_groups, server_settings, touchpoints
from tpcal.integrations.vllm.pruning_step import PruningStep, States
from tpcal.integrations.vllm.question import QuestionReader
from tpcal.integrations.vllm.requests import pruned_images, together
from tpcal.integrations.vllm.stages import Chunk, StageFields
from tpcal.integrations.vllm.support import reads_question
from tpcal.plans.executor.cutting import prepare
from tpcal.plans.plan_records import Plan


def stages_of(plan: Plan, n_layers: int) -> list[int]:
    """[L] stage of each decoder layer."""
    return [sum(cut.layer <= layer for cut in plan.cuts) for layer in range(n_layers)]


class PlanRunner:
    """What a model runner of vLLM needs to run a plan; stands before its class."""

    plan: Plan

    def get_kv_cache_spec(self: Any) -> Any:
        """The kind of each attention layer, a kind of its own for each stage."""
        specs = super().get_kv_cache_spec()  # type: ignore[misc]
        n_layers = len(touchpoints.decoder_layers(self.model))
        return kv_groups.staged(specs, stages_of(self.plan, n_layers))

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        def forward() -> Any:
            plain: Any = super(PlanRunner, self)
            return plain._model_forward(*args, **kwargs)

        context = get_forward_context()
        if not context.attn_metadata:  # vLLM measures memory or warms up
            return forward()
        if "tpcal_forward" not in vars(self):
            self.tpcal_forward = PlanForward(self, self.plan)
        return self.tpcal_forward.run(context, forward)


class PlanForward:
    """Runs the steps of a model runner under a plan.

    Args:
        runner: The model runner, with its model and KV cache.
        plan: The plan.
    """

    def __init__(self, runner: Any, plan: Plan) -> None:
        self.plan = plan
        self._runner = runner
        self._layers = touchpoints.decoder_layers(runner.model)
        self._cuts = prepare(plan.cuts, plan.round_to)
        self._groups: dict[int, list[touchpoints.LayerGroup]] = defaultdict(list)
        for group in touchpoints.layer_groups(runner, stages_of(plan, len(self._layers))):
            self._groups[group.stage].append(group)
        self._waiting: dict[str, States] = {}
        self._reads_question = reads_question(plan)
        self._read = {
            layer: touchpoints.attention_module(runner, layer)
            for layer in (at - 1 for at, cut in self._cuts.items() if cut.reads_attention)
        }
        self._ranks = touchpoints.ranks(runner)
        self._reader = QuestionReader(
            {layer: touchpoints.attention_shape(module) for layer, module in self._read.items()},
            touchpoints.final_norm(runner.model),
            self._ranks,
        )

    def run(self, context: Any, forward: Callable[[], Tensor]) -> Tensor:
        """The model's output at all tokens of the step.

        Args:
            context: The forward context of the step.
            forward: Runs the model.
        """
        chunks = self._chunks()
        gathers = any(chunk.has_visual for chunk in chunks)
        for stage, groups in self._groups.items():
            fields = StageFields.of(self.plan, stage, chunks)
            touchpoints.set_fields(self._runner, context, groups, fields, gathers)
        for gone in set(self._waiting) - set(self._runner.requests):
            del self._waiting[gone]
        if not gathers:
            return forward()
        step = PruningStep(self.plan, self._cuts, chunks, self._waiting, self._reader, self._ranks)
        context.skip_compiled = True  # a compiled model has no layers to hook
        with self._hooked(step):
            try:
                states = forward()
            except _NoTokensLeft as left:
                states = left.states
        return step.full_length(states)

    def _chunks(self) -> list[Chunk]:
        return [
            Chunk(
                r.request.req_id,
                pruned_images(r.request),
                r.first,
                r.n_tokens,
                together(self._reads_question, r.request),
            )
            for r in touchpoints.running(self._runner)
        ]

    @contextmanager
    def _hooked(self, step: PruningStep) -> Iterator[None]:
        first = min(self._cuts, default=len(self._layers))
        hooks = [
            self._layers[at].register_forward_pre_hook(_before(at, step), with_kwargs=True)
            for at in range(first, len(self._layers))
        ]
        hooks += [m.register_forward_pre_hook(_reading(step)) for m in self._read.values()]
        try:
            with touchpoints.deepstack(self._runner.model, step.adds, step.added_after):
                yield
        finally:
            for hook in hooks:
                hook.remove()


class _NoTokensLeft(Exception):
    """All tokens of a step wait or were dropped. Kernels for GPUs do not take 0 tokens."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states
        """[0, D]."""


_NAMES = ("positions", "hidden_states", "residual")


def _before(layer: int, step: PruningStep) -> Callable[..., Any]:
    """A hook that gives a decoder layer the tokens that are left."""

    def before_layer(module: torch.nn.Module, args: Sequence[Any], given: dict[str, Any]) -> Any:
        named: dict[str, Any] = {**given, **dict(zip(_NAMES, args, strict=False))}
        found = step.before_layer(
            layer, named["positions"], named["hidden_states"], named.get("residual")
        )
        if not len(found[1]):
            raise _NoTokensLeft(found[1])
        others = {name: value for name, value in given.items() if name not in _NAMES}
        return (*found, *args[len(_NAMES) :]), others

    return before_layer


def _reading(step: PruningStep) -> Callable[..., None]:
    """A hook that shows the step an attention module's queries and keys."""

    def before_attention(module: torch.nn.Module, args: Sequence[Any]) -> None:
        query, key = args[:2]
        step.saw(query, key)

    return before_attention


def attach(runner: Any) -> None:
    """Makes a model runner run the plan of its server.

    Args:
        runner: A model runner that has not loaded its model yet.
    """
    found = server_settings.received(runner.vllm_config.additional_config)
    kind = type(runner)
    runner.__class__ = type(f"Plan{kind.__name__}", (PlanRunner, kind), {})
    runner.plan = found.plan
