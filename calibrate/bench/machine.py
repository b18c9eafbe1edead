"""The machine and the versions of libraries that times were measured with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from tpcal import __version__
from tpcal.calibrate.bench.bench_results import Machine
from tpcal.calibrate.inputs.models import device_of


def machine_of(model: Any) -> Machine:
    """The machine that the model runs on."""
    return Machine(
        device=device_name(device_of(model)),
        attention=model.config.get_text_config(decoder=True)._attn_implementation,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        tpcal=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


def device_name(device: torch.device) -> str:
    """The name of the GPU or processor; its kind if the system does not tell the name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
