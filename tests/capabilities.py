"""Prints the instruction sets that torch can be told to use on this processor, narrowest first."""

from __future__ import annotations

import torch

_X86 = ("default", "avx2", "avx512")


def capabilities(widest: str) -> list[str]:
    """Values of ATEN_CPU_CAPABILITY up to the one that torch chooses by itself."""
    own = widest.lower()
    return list(_X86[: _X86.index(own) + 1]) if own in _X86 else ["default", own]


if __name__ == "__main__":
    print(*capabilities(torch.backends.cpu.get_cpu_capability()))
