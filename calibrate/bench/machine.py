"""The machine and the libraries that times were taken with."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tpcal import __version__
from tpcal.calibrate.inputs.models import device_of


@dataclass(frozen=True)
class Machine:
    """What times depend on beside the model and the prompt."""

    device: str
    """Name of the processor or GPU."""
    attention: str
    """Implementation, as transformers calls it."""
    dtype: str
    threads: int
    """Of torch on the CPU."""
    tpcal: str
    torch: str
    transformers: str
    system: str


def machine_of(model: Any) -> Machine:
    """Where and how the model runs."""
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
    """The GPU's or the processor's name; its kind where none is told."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
