"""vLLM's worker for CPUs, with a model runner that runs a plan."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from tpcal.integrations.vllm.runner import attach


class PlanCpuWorker(CPUWorker):
    """Runs a plan on CPUs."""

    def init_device(self) -> None:
        """Makes the model runner."""
        super().init_device()
        attach(self.model_runner)
