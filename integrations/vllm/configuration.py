"""Why a server cannot run a plan as it is configured: all reasons at once, each with a way out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tpcal.integrations.vllm import graphs, touchpoints
from tpcal.plans.engines import VLLM
from tpcal.plans.errors import FitError
from tpcal.plans.executor.fit import check
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.plan_records import Plan

_DEFAULT_IMAGE, _DEFAULT_TEXT = 576, 64


def config_problems(config: Any, untried: bool, videos: str = "") -> list[str]:
    """The reasons why no plan runs on a server with this configuration.

    Args:
        config: vLLM's config.
        untried: Leave out what is refused only because no test covers it.
        videos: What `tpcal.plans.engines.Engine.videos` says of the plan and the model.
    """
    version = touchpoints.version_problem()
    return [
        *([version] if version and not untried else []),
        *touchpoints.problems(config.use_v2_model_runner),
        *_refused(config, videos),
        *([] if untried else _untried(config)),
    ]


def _refused(config: Any, videos: str) -> Iterator[str]:
    parallel, cache = config.parallel_config, config.cache_config
    options = {
        "--pipeline-parallel-size": parallel.pipeline_parallel_size > 1,
        "--data-parallel-size": parallel.data_parallel_size > 1,
        "--prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
        "--decode-context-parallel-size": parallel.decode_context_parallel_size > 1,
        "--enable-dbo": parallel.use_ubatching,
        "--speculative-config": config.speculative_config is not None,
        "--enable-lora": config.lora_config is not None,
        "--kv-transfer-config": config.kv_transfer_config is not None,
        "--kv-offloading-size": cache.kv_offloading_size is not None,
        "--enable-sleep-mode": config.model_config.enable_sleep_mode,
        "--model-impl transformers": config.model_config.model_impl == "transformers",
        "--runner pooling": config.model_config.runner_type != "generate",
        "VLLM_USE_RUST_FRONTEND": touchpoints.has_rust_frontend(),
        "--video-pruning-rate": touchpoints.prunes_videos(config),
        "--mm-processor-cache-type shm": bool(videos) and touchpoints.hides_videos(config),
        "--disable-hybrid-kv-cache-manager": bool(
            config.scheduler_config.disable_hybrid_kv_cache_manager
        ),
    }
    for option, given in options.items():
        if given:
            yield f"{option} does not go together with a plan. Leave it out."
    if parallel.worker_cls not in (touchpoints.CPU_WORKER, touchpoints.GPU_WORKER):
        yield f"--worker-cls must be vLLM's own for CPUs or GPUs; got {parallel.worker_cls}."
    if config.scheduler_config.scheduler_cls is not None:
        yield "--scheduler-cls must be left out, because a plan brings its own scheduler."
    if problem := graphs.problem(config):
        yield problem
    if config.model_config.is_mm_prefix_lm:
        yield "Models whose images are attended in both directions are not cut in vLLM."


def _untried(config: Any) -> Iterator[str]:
    on_gpu = config.parallel_config.worker_cls == touchpoints.GPU_WORKER
    if on_gpu and torch.version.hip is not None:
        yield (
            "Plans are tried on CPUs and on GPUs of NVIDIA, and not on those of AMD. The setting "
            "untried=true tries it all the same."
        )
    if on_gpu and config.use_v2_model_runner:
        yield (
            "Plans are tried in vLLM's V1 model runner on GPUs, and in V2 on a CPU only. Set "
            "VLLM_USE_V2_MODEL_RUNNER=0. The setting untried=true tries V2 all the same."
        )
    if on_gpu and config.parallel_config.tensor_parallel_size > 1:
        yield (
            "--tensor-parallel-size is tried on CPUs, and not on several GPUs. The setting "
            "untried=true tries it all the same."
        )
    if backend := touchpoints.untried_attention(config):
        yield (
            "--attention-backend must be TRITON_ATTN or FLASH_ATTN, over which plans are tried; "
            f"got {backend}. The setting untried=true tries it all the same."
        )


def empty_model(config: Any) -> PreTrainedModel:
    """The served model in transformers, without weights.

    Args:
        config: vLLM's config.
    """
    own = config.model_config.hf_config
    with torch.device("meta"):
        try:
            return AutoModelForImageTextToText.from_config(own)
        except ValueError as error:  # its text lists all configurations that it knows
            name = ", ".join(own.architectures or [type(own).__name__])
            problem = "transformers knows no images of this model. Serve it without a plan."
            raise FitError(name, [problem]) from error


def n_layers(model: PreTrainedModel) -> int:
    """Number of decoder layers."""
    return len(find(model).layers(model))


def model_problems(
    plan: Plan, model: PreTrainedModel, untried: bool, longest: int | None = None
) -> list[str]:
    """The reasons why this plan does not run on this model in vLLM.

    Args:
        plan: The plan.
        model: The model in transformers; its weights are not looked at.
        untried: Leave out what is refused only because no test covers it.
        longest: Most tokens of a request, its answer included; None if that is unknown.
    """
    problems = check(plan, model)
    if problems:
        return problems
    problems = VLLM.plan_problems(
        plan, type(model).__name__, untried=untried, no_squares=_no_squares(model.config)
    )
    return problems + VLLM.decoder_problems(decoder_shape(model), plan, longest)


def _no_squares(config: Any) -> str | None:
    """Why a LLaVA's images are no square grids; None if they are."""
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", None))
    if tower == "pixtral":
        return "Pixtral takes images of any shape. Use diversity or random."
    # The strategy "default" leaves the first token out, which SigLIP has no class token at.
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if tower.startswith("siglip"):
        return "these lack their first patch." if strategy == "default" else None
    return "these have a class token." if strategy == "full" else None


def counted_prompt(plan: Plan, model: PreTrainedModel) -> tuple[int, int]:
    """Visual and text tokens of the prompt that the log line counts.

    Those of the plan's own cost if it states one; otherwise one image.
    """
    if plan.cost is not None:
        return plan.cost.n_tokens, plan.cost.n_text
    vision = getattr(model.config, "vision_config", None)
    side, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
    if isinstance(side, int) and isinstance(patch, int):
        return math.floor(side / patch / _merged(model.config)) ** 2, _DEFAULT_TEXT
    return _DEFAULT_IMAGE, _DEFAULT_TEXT


def _merged(config: Any) -> float:
    """Side of the square of patches that a visual token is made of."""
    for name in ("spatial_merge_size", "scale_factor"):  # Mistral 3; Idefics3 and SmolVLM
        if found := getattr(config, name, None):
            return float(found)
    return 1 / (getattr(config, "downsample_ratio", None) or 1)  # InternVL
