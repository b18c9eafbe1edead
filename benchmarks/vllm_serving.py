"""What plans save in vLLM: requests at once, KV bytes and time, as ratios to the unpruned model.

Every engine gets a KV cache of the same bytes. Weights are random, because neither memory nor time
depends on them. On a CPU, times are processor times of the process in which the whole engine runs,
so that other programs on the machine matter little; on a GPU they are times by the clock. On a GPU
the unpruned model has the attention backend that vLLM chooses, and plans have theirs, unless
--attention-backend names one for all. With --with-graphs every engine is also measured with CUDA
graphs, the unpruned one as vLLM runs it by default, and compared with the unpruned one that has
them. Every figure is printed as soon as it is measured, and the file of --json is written after
each engine, so that a time limit loses little.
Needs the environment of `make vllm-env`, or a GPU and vLLM's own build.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from PIL import Image

from tpcal import Cut, Plan, save_plan
from tpcal.calibrate.embedded import FOLDER

FAILED, SLOWER = 1, 6  # exit codes
ON_GPU = torch.cuda.is_available()
UNPRUNED, WITH_GRAPHS = "unpruned", ", with CUDA graphs"
_IMAGES = count()
_ENGINE: list[Any] = []  # the one of this process


@dataclass(frozen=True)
class Geometry:
    """A LLaVA of 576 visual tokens, and how it is measured."""

    side: int
    """Pixels of an image's side."""
    patch: int
    question: str
    n_answer: int
    """Tokens of an answer."""
    memory: int
    """MiB of the KV cache."""
    requests: int
    """Requests that are given at once."""
    plans: Mapping[str, Plan | None]
    """Those with cuts have a layer average of 0.22."""
    repeats: int
    """How often a time is taken; the least counts."""
    options: Mapping[str, Any]
    """Options of vLLM."""


def _three_cuts(selector: str) -> Plan:
    stages = ((4, 0.3), (8, 0.12), (16, 0.055))
    return Plan(cuts=tuple(Cut(layer, keep, selector) for layer, keep in stages))


GEOMETRIES = {
    "8-layers": Geometry(
        side=192,
        patch=8,
        question="a" * 60,
        n_answer=16,
        memory=64,
        requests=16,
        plans={
            UNPRUNED: None,
            "before the decoder": Plan(cuts=(Cut(0, 0.22, "diversity"),)),
            "inside the decoder": Plan(
                cuts=(Cut(1, 0.18, "diversity"), Cut(4, 0.055, "diversity"))
            ),
        },
        repeats=1,
        options={"dtype": "float32", "max_num_batched_tokens": 1024},
    ),
    "llava-1.5-7b": Geometry(
        side=336,
        patch=14,
        question=" ".join(["left"] * 60),
        n_answer=32,
        memory=8192,
        requests=96,
        plans={
            UNPRUNED: None,
            "before the decoder": Plan(cuts=(Cut(0, 0.22, "diversity"),)),
            "inside the decoder": _three_cuts("diversity"),
            "inside, by attention": _three_cuts("attention"),
        },
        repeats=2,
        options={
            "dtype": "bfloat16",
            "max_num_batched_tokens": 8192,
            "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 96],
        },
    ),
}


@dataclass
class Figures:
    """What was measured of one plan."""

    plan: str
    graphs: bool
    """Whether the engine had CUDA graphs."""
    requests_at_once: int
    """Largest number of requests that answered together."""
    kv_bytes: int
    """Bytes of the KV blocks of one request after its prefill."""
    preemptions: int
    requests_per_s: float
    """Of the requests that were given at once."""
    prefill_s: dict[int, float]
    """Seconds until the first token of all requests, by their number."""
    answer_s: dict[int, float]
    """Seconds until the last token of all requests, by their number."""


@click.command()
@click.option(
    "--geometry", type=click.Choice(list(GEOMETRIES)), default="8-layers", show_default=True
)
@click.option("--hidden", default=512, show_default=True, help="Width of the decoder of 8 layers.")
@click.option("--memory", type=int, help="MiB of the KV cache.")
@click.option("--requests", type=int, help="Requests that are given at once.")
@click.option(
    "--concurrency", default="1,8,32", show_default=True, help="Requests that are timed together."
)
@click.option("--plan", "names", multiple=True, help="Only this one and the unpruned model.")
@click.option("--with-graphs", is_flag=True, help="Also measure all of them with CUDA graphs.")
@click.option(
    "--start-together",
    is_flag=True,
    help="Start all engines before the first is measured. The memory must suffice for all.",
)
@click.option("--attention-backend", "backend", help="vLLM's name of it; its own choice if none.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="File for all figures.")
def main(
    geometry: str,
    hidden: int,
    memory: int | None,
    requests: int | None,
    concurrency: str,
    names: tuple[str, ...],
    with_graphs: bool,
    start_together: bool,
    backend: str | None,
    out: Path | None,
) -> None:
    """Compares plans at a layer average of 0.22 with the unpruned model in vLLM.

    Exits with 6 if a plan is slower than the unpruned model at any concurrency, and with 1 if an
    engine fails.
    """
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1"
    )
    chosen = GEOMETRIES[geometry]
    chosen = replace(chosen, memory=memory or chosen.memory, requests=requests or chosen.requests)
    if backend is not None:
        chosen = replace(chosen, options={**chosen.options, "attention_backend": backend})
    if unknown := set(names) - set(chosen.plans):
        known = ", ".join(chosen.plans)
        raise click.UsageError(f"--plan must be one of {known}; got {min(unknown)}.")
    plans = {n: p for n, p in chosen.plans.items() if p is None or not names or n in names}
    if with_graphs:
        plans |= {f"{name}{WITH_GRAPHS}": plan for name, plan in plans.items()}
    sizes = [int(n) for n in concurrency.split(",")]
    found: list[Figures] = []
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        _save(model, chosen, hidden if geometry == "8-layers" else None)
        for figures in _each(plans, model, chosen, sizes, start_together):
            found.append(figures)
            click.echo(_line(figures, _full(figures, found)))
            if figures is _full(figures, found):
                click.echo("\n".join(_totals(figures, chosen)))
            if out is not None:
                out.write_text(json.dumps([asdict(one) for one in found], indent=1))
    slower = [line for figures in found for line in _slower(figures, _full(figures, found))]
    for line in slower:
        click.echo(line, err=True)
    sys.exit(FAILED if len(found) < len(plans) else SLOWER if slower else 0)


def _full(figures: Figures, found: Sequence[Figures]) -> Figures:
    """Those of the unpruned model with or without CUDA graphs, as these have them if they can."""
    full = [one for one in found if one.plan.startswith(UNPRUNED)] or found
    return next((one for one in full if one.graphs is figures.graphs), full[0])


def _each(
    plans: Mapping[str, Plan | None],
    model: Path,
    geometry: Geometry,
    sizes: list[int],
    start_together: bool,
) -> Iterator[Figures]:
    """Measures one engine after the other.

    Each has a process of its own, because engines keep memory of a GPU after their end. All
    processes load vLLM's code at the same time, before the first one measures. An engine that
    fails is left out.
    """
    spawn = get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=spawn) for name in plans}
    wait([pool.submit(_load) for pool in pools.values()])

    def start(name: str) -> Future[None]:
        path = model.parent / f"{list(plans).index(name)}.yaml"
        own: dict[str, Any] = {}
        if (plan := plans[name]) is not None:
            save_plan(plan, path)
            own = {"tpcal": {"plan": str(path)}}
        return pools[name].submit(_start, name, model, own, geometry, sizes)

    started = {name: start(name) for name in plans} if start_together else {}
    wait(started.values())
    for name, pool in pools.items():
        with pool:
            try:
                (started.get(name) or start(name)).result()
                yield pool.submit(_measure, name, geometry, sizes).result()
            except Exception as error:
                click.echo(f"{name} failed: {type(error).__name__}: {error}", err=True)


def _load() -> None:
    """Loads vLLM's code, which takes about as long as an engine's start."""
    for module in ("entrypoints.llm", "v1.worker.gpu_model_runner", "model_executor.models.llava"):
        import_module(f"vllm.{module}")


def _save(folder: Path, geometry: Geometry, hidden: int | None) -> None:
    """Saves a LLaVA without weights: of 8 layers and this width, or of LLaVA-1.5-7B's size."""
    from transformers import AutoConfig, AutoProcessor, CLIPVisionConfig, LlamaConfig

    config = AutoConfig.from_pretrained(FOLDER)
    config.image_seq_length = (geometry.side // geometry.patch) ** 2
    text = config.text_config
    if hidden is None:
        config.text_config = LlamaConfig(
            vocab_size=32064,
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=4096,
            **{name: getattr(text, name) for name in ("bos_token_id", "eos_token_id")},
        )
        config.vision_config = CLIPVisionConfig(  # the large tower
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            projection_dim=768,
        )
        config.vision_feature_layer = -2
    else:
        text.hidden_size, text.intermediate_size, text.head_dim = hidden, hidden * 11 // 4, 64
        text.num_attention_heads = text.num_key_value_heads = hidden // 64
    config.vision_config.image_size = geometry.side
    config.vision_config.patch_size = geometry.patch
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(FOLDER)
    size = {"height": geometry.side, "width": geometry.side}
    processor.image_processor.size = processor.image_processor.crop_size = size
    processor.patch_size = geometry.patch
    processor.save_pretrained(folder)


def _engine(model: Path, own: dict[str, Any], geometry: Geometry, graphs: bool) -> Any:
    from vllm import LLM

    return LLM(
        str(model),
        load_format="dummy",
        enforce_eager=not graphs,
        max_model_len=1024,
        max_num_seqs=geometry.requests,
        block_size=32,
        kv_cache_memory_bytes=geometry.memory << 20,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 1},
        skip_mm_profiling=True,  # the cache is not made as large as the memory allows
        gpu_memory_utilization=0.1,  # what must be free; the cache has the bytes above
        distributed_executor_backend="uni",
        disable_log_stats=False,
        additional_config=own,
        **geometry.options,
    )


def _start(
    name: str, model: Path, own: dict[str, Any], geometry: Geometry, sizes: list[int]
) -> None:
    """Starts the engine of this process."""
    graphs = name.endswith(WITH_GRAPHS)
    # Plans run in the V1 runner, and the unpruned model is compared in the same one if possible.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(graphs and not own))
    largest = max(geometry.requests, *sizes)
    _ENGINE.append(_engine(model, own, replace(geometry, requests=largest), graphs))
    _seconds(_ENGINE[0], geometry, 1, 2)  # warms up


def _measure(name: str, geometry: Geometry, sizes: list[int]) -> Figures:
    (llm,) = _ENGINE

    def seconds(n: int, n_answer: int) -> float:
        least = min(_seconds(llm, geometry, n, n_answer) for _ in range(geometry.repeats))
        click.echo(f"{name}: {n} requests of {n_answer} answer tokens took {least:.3f} s")
        return least

    prefill = {n: seconds(n, 1) for n in sizes}
    answer = {n: seconds(n, geometry.n_answer) for n in sizes}
    before = _n_preemptions(llm)
    start = _clock()
    most, held = _together(llm, geometry)
    rate = geometry.requests / (_clock() - start)
    preemptions = _n_preemptions(llm) - before
    graphs = name.endswith(WITH_GRAPHS)
    return Figures(name, graphs, most, held, int(preemptions), rate, prefill, answer)


def _clock() -> float:
    return time.perf_counter() if ON_GPU else time.process_time()


def _n_preemptions(llm: Any) -> float:
    return float(next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"))


def _seconds(llm: Any, geometry: Geometry, n: int, n_answer: int) -> float:
    """Seconds until ``n`` requests have ``n_answer`` tokens each."""
    _give(llm, geometry, n, n_answer)
    start = _clock()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return _clock() - start


def _together(llm: Any, geometry: Geometry) -> tuple[int, int]:
    """Largest number of requests that answer together, and the KV bytes of one of them."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    _give(llm, geometry, geometry.requests, geometry.n_answer)
    most = held = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        answering = sum(request.num_output_tokens > 0 for request in scheduler.running)
        most = max(most, answering)  # others may wait for memory in the middle of their prompt
        if not held and scheduler.running and scheduler.running[0].num_output_tokens:
            held = _bytes(scheduler.kv_cache_manager, scheduler.running[0].request_id)
    return most, held


def _bytes(manager: Any, request: str) -> int:
    """Bytes of the KV blocks of a request. A block holds as many layers as the largest group."""
    groups = manager.kv_cache_config.kv_cache_groups
    n_layers = max(len(group.layer_names) for group in groups)
    n_blocks = sum(map(len, manager.get_block_ids(request)))
    return int(n_blocks * n_layers * groups[0].kv_cache_spec.page_size_bytes)


def _give(llm: Any, geometry: Geometry, n: int, n_answer: int) -> None:
    """Gives ``n`` requests, each with an image that was never given before."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=n_answer, min_tokens=n_answer, ignore_eos=True
    )
    for _ in range(n):
        number = next(_IMAGES)
        image = Image.new("RGB", (geometry.side,) * 2, (number % 256, number // 256, n_answer))
        text = f"USER: <image>\n{geometry.question} ASSISTANT:"
        given = {"prompt": text, "multi_modal_data": {"image": image}}
        llm.llm_engine.add_request(str(number), given, params)


def _slower(figures: Figures, full: Figures) -> list[str]:
    """A line for every time in which a plan is slower than the unpruned model."""
    kinds = {"first token": "prefill_s", "last token": "answer_s"}
    return [
        f"Slower: {figures.plan} takes {mine[n] / s:.2f} times as long to the {kind} at {n}."
        for kind, field in kinds.items()
        for mine in [getattr(figures, field)]
        for n, s in getattr(full, field).items()
        if mine[n] > s
    ]


def _line(f: Figures, full: Figures) -> str:
    times = ", ".join(f"{f.prefill_s[n] / s:.2f} at {n}" for n, s in full.prefill_s.items())
    rates = ", ".join(f"{s / f.answer_s[n]:.2f} at {n}" for n, s in full.answer_s.items())
    return (
        f"{f.plan} | {f.requests_at_once} at once | {f.kv_bytes:,} KV bytes of a request "
        f"({f.kv_bytes / full.kv_bytes:.2f}) | {f.preemptions} preemptions | "
        f"{f.requests_per_s:.2f} requests/s ({f.requests_per_s / full.requests_per_s:.2f}) | "
        f"prefill {times} | tokens/s {rates} | ratios to {full.plan}"
    )


def _totals(full: Figures, geometry: Geometry) -> list[str]:
    seconds = ", ".join(f"{s:.3f} s at {n}" for n, s in full.prefill_s.items())
    n_answer = geometry.n_answer
    per_s = ", ".join(f"{n * n_answer / s:.1f} at {n}" for n, s in full.answer_s.items())
    kind = "times by the clock" if ON_GPU else "processor times"
    return [
        f"Prefill and tokens/s are ratios, of {kind}. Unpruned prefill: {seconds}.",
        f"Unpruned tokens per second of the whole request: {per_s}.",
    ]


if __name__ == "__main__":
    main()
