"""What plans save in vLLM: requests at once, KV bytes and time, as ratios to the unpruned model.

Every engine gets a KV cache of the same bytes. Weights are random, because neither memory nor time
depends on them. Times are processor times of this process, in which the whole engine runs, so that
other programs on the machine matter little. Needs the environment of `make vllm-env`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from PIL import Image

from tpcal import Cut, Plan, save_plan
from tpcal.calibrate.embedded import FOLDER

SLOWER = 6  # exit code
N_TEXT, N_ANSWER = 60, 16
SIDE, PATCH = 192, 8  # 576 visual tokens
PLANS = {
    "unpruned": None,
    "before the decoder": Plan(cuts=(Cut(0, 0.22, "diversity"),)),
    "inside the decoder": Plan(cuts=(Cut(1, 0.18, "diversity"), Cut(4, 0.055, "diversity"))),
}
"""Both plans have a layer average of 0.22 at 8 layers."""


@dataclass
class Figures:
    """What was measured of one plan."""

    plan: str
    requests_at_once: int
    """Largest number of requests that answered together."""
    kv_bytes: int
    """Bytes of the KV blocks of one request after its prefill."""
    preemptions: int
    prefill_s: dict[int, float]
    """Processor seconds until the first token of all requests, by their number."""
    answer_s: dict[int, float]
    """Processor seconds until the last token of all requests, by their number."""


@click.command()
@click.option("--hidden", default=512, show_default=True, help="Width of the decoder.")
@click.option("--memory", default=64, show_default=True, help="MiB of the KV cache.")
@click.option("--requests", default=16, show_default=True, help="Requests that are given at once.")
@click.option(
    "--concurrency", default="1,8,32", show_default=True, help="Requests that are timed together."
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="File for all figures.")
def main(hidden: int, memory: int, requests: int, concurrency: str, out: Path | None) -> None:
    """Compares plans at a layer average of 0.22 with the unpruned model in vLLM.

    Exits with 6 if a plan is slower than the unpruned model at any concurrency.
    """
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1"
    )
    found = []
    with TemporaryDirectory() as folder:
        model = _model(Path(folder) / "model", hidden)
        for name, plan in PLANS.items():
            path = Path(folder) / "plan.yaml"
            if plan is not None:
                save_plan(plan, path)
            own = {} if plan is None else {"tpcal": {"plan": str(path)}}
            sizes = [int(n) for n in concurrency.split(",")]
            found.append(_measure(name, model, own, memory << 20, requests, sizes))
    for line in _lines(found):
        click.echo(line)
    if out is not None:
        out.write_text(json.dumps([asdict(figures) for figures in found], indent=1))
    slower = [line for figures in found[1:] for line in _slower(figures, found[0])]
    for line in slower:
        click.echo(line, err=True)
    if slower:
        sys.exit(SLOWER)


def _model(folder: Path, hidden: int) -> Path:
    """A folder with a LLaVA of 8 layers, without weights."""
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(FOLDER)
    config.image_seq_length = (SIDE // PATCH) ** 2
    config.vision_config.image_size = SIDE
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = hidden, hidden * 11 // 4, 64
    text.num_attention_heads = text.num_key_value_heads = hidden // 64
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(FOLDER)
    size = {"height": SIDE, "width": SIDE}
    processor.image_processor.size = processor.image_processor.crop_size = size
    processor.save_pretrained(folder)
    return folder


def _measure(
    name: str, model: Path, own: dict[str, Any], memory: int, requests: int, sizes: list[int]
) -> Figures:
    from vllm import LLM

    llm: Any = LLM(
        str(model),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=max(requests, *sizes),
        max_num_batched_tokens=1024,
        block_size=32,
        kv_cache_memory_bytes=memory,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        disable_log_stats=False,
        additional_config=own,
    )
    _seconds(llm, 1, 1)  # warms up
    prefill = {n: _seconds(llm, n, 1) for n in sizes}
    answer = {n: _seconds(llm, n, N_ANSWER) for n in sizes}
    before = _n_preemptions(llm)
    most, held = _together(llm, requests)
    preemptions = _n_preemptions(llm)
    del llm
    gc.collect()
    return Figures(name, most, held, int(preemptions - before), prefill, answer)


def _n_preemptions(llm: Any) -> float:
    return float(next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"))


def _seconds(llm: Any, n: int, n_answer: int) -> float:
    """Processor seconds until ``n`` requests have ``n_answer`` tokens each."""
    _give(llm, n, n_answer)
    start = time.process_time()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return time.process_time() - start


def _together(llm: Any, n: int) -> tuple[int, int]:
    """Largest number of requests that answer together, and the KV bytes of one of them."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    _give(llm, n, n_answer=N_ANSWER)
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


def _give(llm: Any, n: int, n_answer: int) -> None:
    """Gives ``n`` requests with different images."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=n_answer, min_tokens=n_answer, ignore_eos=True
    )
    for number in range(n):
        image = Image.new("RGB", (SIDE, SIDE), (number % 256, n % 256, n_answer))
        text = f"USER: <image>\n{'a' * N_TEXT} ASSISTANT:"
        given = {"prompt": text, "multi_modal_data": {"image": image}}
        llm.llm_engine.add_request(f"{n}-{n_answer}-{number}", given, params)


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


def _lines(found: list[Figures]) -> list[str]:
    full = found[0]
    lines = ["plan | requests at once | KV bytes of a request | preemptions | prefill | tokens/s"]
    for f in found:
        times = ", ".join(f"{f.prefill_s[n] / s:.2f} at {n}" for n, s in full.prefill_s.items())
        rates = ", ".join(f"{s / f.answer_s[n]:.2f} at {n}" for n, s in full.answer_s.items())
        lines.append(
            f"{f.plan} | {f.requests_at_once} | {f.kv_bytes:,} "
            f"({f.kv_bytes / full.kv_bytes:.2f}) | {f.preemptions} | {times} | {rates}"
        )
    seconds = ", ".join(f"{s:.2f} s at {n}" for n, s in full.prefill_s.items())
    per_s = ", ".join(f"{n * N_ANSWER / s:.1f} at {n}" for n, s in full.answer_s.items())
    return [
        *lines,
        f"Prefill and tokens/s are ratios, of processor times. Unpruned prefill: {seconds}.",
        f"Unpruned tokens per second of the whole request: {per_s}.",
    ]


if __name__ == "__main__":
    main()
