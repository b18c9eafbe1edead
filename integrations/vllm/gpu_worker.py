"""vLLM's worker for GPUs, with a model runner that runs a plan."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from tpcal.integrations.vllm.runner import attach


class PlanGpuWorker(Worker):
    """Runs a plan on a GPU."""

    def init_device(self) -> None:
        """Makes the model runner."""
        super().init_device()
        attach(self.model_runner)
