"""Makes vLLM's V2 model runner run on a CPU: `pytest -p served_v2` in a process of its own.

The V2 runner prepares its steps with Triton's kernels. Triton's interpreter runs them on a CPU,
one program after the other, if it is asked for before Triton is imported. vLLM asks whether
Triton has a backend for CPUs, which Triton's own release lacks; nothing is ever compiled for it.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

from triton import backends


class _Interpreter:
    @staticmethod
    def is_active() -> bool:
        return True


backends.backends["cpu"] = backends.Backend(compiler=None, driver=_Interpreter)
