"""CUDA graphs beside a plan: what of vLLM's compilation a plan can take, by vLLM's own options.

A CUDA graph replays what was recorded, with the arguments of the step in which it was recorded. A
plan gives the attention of every stage other metadata in every step, so graphs must end before
attention and begin again behind it. vLLM calls this *piecewise*, and records such graphs for mixed
batches by default. A step in which visual tokens run skips graphs and compiled code alike.
"""

from __future__ import annotations

from typing import Any

from tpcal.integrations.vllm.touchpoints import GPU_WORKER

ATTENTION = ("vllm::unified_attention_with_output", "vllm::unified_kv_cache_update")
"""Operations that read a step's metadata."""


def problem(config: Any) -> str | None:
    """Why a plan cannot run in the way a server compiles its model; None if it can.

    Args:
        config: vLLM's config, whose worker is still vLLM's own.
    """
    from vllm.config import CompilationMode

    chosen = config.compilation_config
    if chosen.mode == CompilationMode.STOCK_TORCH_COMPILE:
        return (
            "--compilation-config must not ask for mode 1, in which steps with images cannot run "
            "uncompiled. Leave the mode out, or give --enforce-eager."
        )
    if config.parallel_config.worker_cls != GPU_WORKER or _end_before_attention(chosen):
        return None
    return (
        "CUDA graphs must be piecewise, with attention outside them, because they replay the "
        "metadata of another step. Leave --compilation-config out, or give --enforce-eager."
    )


def leave_attention_out(config: Any) -> list[str]:
    """Makes a server record piecewise CUDA graphs only.

    Args:
        config: vLLM's config, in which `problem` finds none.

    Returns:
        What the user should know of it, three sentences.
    """
    from vllm.config import CUDAGraphMode

    chosen = config.compilation_config
    if config.parallel_config.worker_cls != GPU_WORKER or not chosen.cudagraph_mode:
        return []
    chosen.cudagraph_mode = CUDAGraphMode.PIECEWISE
    return [
        "The server records piecewise CUDA graphs, with attention outside them. Steps in which "
        "visual tokens run use no graphs and no compiled code. One plan's answers were compared "
        "with these graphs, in float32: compare some of yours, or give --enforce-eager."
    ]


def _end_before_attention(chosen: Any) -> bool:
    from vllm import envs
    from vllm.config import CompilationMode

    mode = chosen.cudagraph_mode
    return not mode or (
        mode.requires_piecewise_compilation()
        and chosen.mode == CompilationMode.VLLM_COMPILE
        and set(ATTENTION) <= set(chosen.splitting_ops or ())
        and not chosen.use_inductor_graph_partition
        and not envs.VLLM_USE_BREAKABLE_CUDAGRAPH
    )
