"""vLLM's schedulers, with managers that know the plan."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from tpcal.integrations.vllm import kv_groups, server_settings
from tpcal.integrations.vllm.requests import Requests


class PlanScheduler(Scheduler):
    """Schedules as vLLM does, and counts the tokens that each stage holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = server_settings.received(self.vllm_config.additional_config)
        self.pruning = Requests.of(found)
        for manager in kv_groups.managers(self):
            manager.pruning, manager.requests = self.pruning, self.requests

    def add_request(self, request: Any) -> None:
        """Takes a request. A prompt that a selector reads as a whole also runs as a whole."""
        if self.pruning.pruned(request).together:
            request.skip_reading_prefix_cache = True
        super().add_request(request)


class AsyncPlanScheduler(PlanScheduler, AsyncScheduler):
    """The same for asynchronous scheduling."""
