"""The entry point through which vLLM finds tpcal: without a plan it changes nothing.

With a plan it checks, in the process that starts the server, that the plan fits the model and that
vLLM can run it. Then it names a worker and a scheduler of its own in vLLM's options.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tpcal.integrations.vllm import graphs, server_settings, support, touchpoints
from tpcal.integrations.vllm.server_settings import KEY, Settings
from tpcal.plans.engines import VLLM
from tpcal.plans.errors import FitError
from tpcal.plans.kill_switch import off_by_variable

# A child of vLLM's own logger, so that lines appear as vLLM's do.
_LOG = logging.getLogger("vllm.tpcal")
_FOLDER = "tpcal.integrations.vllm"
_WORKERS = {
    touchpoints.CPU_WORKER: f"{_FOLDER}.cpu_worker.PlanCpuWorker",
    touchpoints.GPU_WORKER: f"{_FOLDER}.gpu_worker.PlanGpuWorker",
}


def register() -> None:
    """Lets servers of this process find a plan; a second call changes nothing."""
    from vllm.engine.arg_utils import EngineArgs

    def around(plain: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        # Read first: a plan that cannot be read should not wait for the model's config.
        found = server_settings.read(self.additional_config or {})
        if found is not None:
            touchpoints.prefer_v1_runner()
        config = plain(self, *args, **kwargs)
        if found is not None:
            prepare(config, found)
        elif off_by_variable():
            config.additional_config = {**config.additional_config, KEY: {"off": True}}
        if KEY in config.additional_config:
            from tpcal.integrations.vllm import counters

            counters.count_requests()
        return config

    touchpoints.wrap_once(EngineArgs, "create_engine_config", around)


def prepare(config: Any, found: Settings) -> None:
    """Makes a server run a plan.

    Args:
        config: vLLM's config of the server, which is changed.
        found: The settings.

    Raises:
        FitError: The plan does not fit the model, or vLLM cannot run it here.
        BudgetError: A preset cannot be scaled to its budget on this model.
    """
    from tpcal.integrations.vllm import configuration

    model = configuration.empty_model(config)
    n_layers = configuration.n_layers(model)
    prompt = configuration.counted_prompt(found.plan, model)
    found = found.scaled(n_layers, prompt[0])
    plan = found.plan
    found = replace(found, videos=VLLM.videos(plan, type(model).__name__))
    problems = configuration.config_problems(config, found.untried, found.videos)
    longest = config.model_config.max_model_len
    problems += configuration.model_problems(plan, model, found.untried, longest)
    if problems:
        raise FitError(plan.name or "The plan", problems)
    asynchronous = config.scheduler_config.async_scheduling
    kind = "AsyncPlanScheduler" if asynchronous else "PlanScheduler"
    config.scheduler_config.scheduler_cls = f"{_FOLDER}.scheduler.{kind}"
    notes = support.notes(plan, n_layers)
    notes += touchpoints.prefer_tried_attention(config) + graphs.leave_attention_out(config)
    config.parallel_config.worker_cls = _WORKERS[config.parallel_config.worker_cls]
    config.additional_config = {**config.additional_config, KEY: found.passed_on()}
    _LOG.info("tpcal: %s", support.summary(plan, n_layers, *prompt, found.videos))
    for note in notes:
        _LOG.warning("tpcal: %s", note)
