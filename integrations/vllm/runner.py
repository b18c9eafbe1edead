"""vLLM's model runners with a plan.

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
from tpcal.integrations.vllm.requests import Requests
from tpcal.integrations.vllm.stages import Chunk, StageFields
from tpcal.plans.errors import FitError
from tpcal.plans.executor.cutting import prepare
from tpcal.plans.plan_records import Plan


def stages_of(plan: Plan, n_layers: int) -> list[int]:
    """[L] stage of each decoder layer."""
    return [sum(cut.layer <= layer for cut in plan.cuts) for layer in range(n_layers)]


class PlanRunner:
    """What a model runner of vLLM needs to run a plan; stands before its class."""

    pruning: Requests

    def get_kv_cache_spec(self: Any) -> Any:
        """The kind of each attention layer, a kind of its own for each stage."""
        if problem := touchpoints.layer_problem(self.model):
            raise FitError(type(self.model).__name__, [problem])
        specs = super().get_kv_cache_spec()  # type: ignore[misc]
        n_layers = len(touchpoints.decoder_layers(self.model))
        longest = self.model_config.max_model_len
        return kv_groups.staged(specs, stages_of(self.pruning.plan, n_layers), longest)

    def run_plan(self: Any, context: Any, step: touchpoints.RunnerStep, forward: Any) -> Any:
        """The model's output at all tokens of the step, from `PlanForward`."""
        if "tpcal_forward" not in vars(self):
            self.tpcal_forward = PlanForward(self, self.pruning)
        return self.tpcal_forward.run(context, step, forward)


class PlanRunnerV1(PlanRunner):
    """The same for the V1 model runner."""

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        def forward() -> Any:
            plain: Any = super(PlanRunnerV1, self)
            return plain._model_forward(*args, **kwargs)

        context = get_forward_context()
        if not context.attn_metadata:  # vLLM measures memory or warms up
            return forward()
        return self.run_plan(context, touchpoints.step(self), forward)


class PlanRunnerV2(PlanRunner):
    """The same for the V2 model runner, which calls the model itself and keeps no requests."""

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        """Loads the model, whose calls then run the plan."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self.tpcal_requests: dict[str, Any] = {}
        self.tpcal_step = None
        touchpoints.around_forward(self.model, self._around)

    def add_requests(self: Any, scheduler_output: Any) -> None:
        """Takes the requests that are new, or start anew, in this step."""
        super().add_requests(scheduler_output)  # type: ignore[misc]
        for request in scheduler_output.scheduled_new_reqs:
            self.tpcal_requests[request.req_id] = request

    def _remove_request(self: Any, req_id: str) -> Any:
        self.tpcal_requests.pop(req_id, None)
        return super()._remove_request(req_id)  # type: ignore[misc]

    def prepare_attn(self: Any, input_batch: Any) -> Any:
        """The block tables and slots of a step with requests."""
        found = super().prepare_attn(input_batch)  # type: ignore[misc]
        self.tpcal_step = touchpoints.step_v2(self, self.tpcal_requests, input_batch, found[0])
        return found

    def prepare_dummy_attn(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The same of a step with which vLLM warms up."""
        self.tpcal_step = None
        return super().prepare_dummy_attn(*args, **kwargs)  # type: ignore[misc]

    def _around(self: Any, forward: Callable[[], Any]) -> Any:
        step, self.tpcal_step = self.tpcal_step, None
        if step is None:
            return forward()
        return self.run_plan(get_forward_context(), step, forward)


class PlanForward:
    """Runs the steps of a model runner under a plan.

    Args:
        runner: The model runner, with its model and KV cache.
        pruning: What the plan prunes of requests.
    """

    def __init__(self, runner: Any, pruning: Requests) -> None:
        self.plan = plan = pruning.plan
        self._pruning = pruning
        self._runner = runner
        self._layers = touchpoints.decoder_layers(runner.model)
        self._cuts = prepare(plan)
        self._groups: dict[int, list[touchpoints.LayerGroup]] = defaultdict(list)
        for group in touchpoints.layer_groups(runner, stages_of(plan, len(self._layers))):
            self._groups[group.stage].append(group)
        self._waiting: dict[str, States] = {}
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

    def run(
        self, context: Any, step: touchpoints.RunnerStep, forward: Callable[[], Tensor]
    ) -> Tensor:
        """The model's output at all tokens of the step.

        Args:
            context: The forward context of the step.
            step: What runs.
            forward: Runs the model.
        """
        chunks = self._chunks(step)
        gathers = any(chunk.has_visual for chunk in chunks)
        for stage, groups in self._groups.items():
            fields = StageFields.of(stage, chunks)
            touchpoints.set_fields(step, context, groups, fields, gathers)
        for gone in set(self._waiting) - set(step.known):
            del self._waiting[gone]
        if not gathers:
            return forward()
        pruning = PruningStep(
            self.plan, self._cuts, chunks, self._waiting, self._reader, self._ranks
        )
        context.skip_compiled = True  # a compiled model has no layers to hook
        with self._hooked(pruning):
            try:
                states = forward()
            except _NoTokensLeft as left:
                states = left.states
        return pruning.full_length(states)

    def _chunks(self, step: touchpoints.RunnerStep) -> list[Chunk]:
        return [
            Chunk(r.request.req_id, self._pruning.pruned(r.request), r.first, r.n_tokens)
            for r in step.running
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


def _before(layer: int, step: PruningStep) -> Callable[..., Any]:
    """A hook that gives a decoder layer the tokens that are left."""

    def before_layer(module: torch.nn.Module, args: Sequence[Any], given: dict[str, Any]) -> Any:
        named: dict[str, Any] = {**given, **dict(zip(touchpoints.LAYER, args, strict=False))}
        found = step.before_layer(
            layer, named["positions"], named["hidden_states"], named.get("residual")
        )
        if not len(found[1]):
            raise _NoTokensLeft(found[1])
        own = touchpoints.LAYER if "residual" in named else touchpoints.LAYER[:-1]
        others = {name: value for name, value in given.items() if name not in own}
        return (*found[: len(own)], *args[len(own) :]), others

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
    own = PlanRunnerV2 if touchpoints.is_v2(runner) else PlanRunnerV1
    runner.__class__ = type(f"Plan{kind.__name__}", (own, kind), {})
    runner.pruning = Requests.of(found)
