"""vLLM on the built-in model for tests, and tpcal's executor on the same prompts to compare with."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tpcal
from tpcal import Cut, Plan
from tpcal.calibrate.embedded import FOLDER, EmbeddedSample

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that tests can look inside
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What vLLM reads when it is imported."""
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
"""Where both vLLM and the executor run."""
OF_GPUS = {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.05}
"""Options with which an engine leaves room for the executor, and holds what it does on a CPU."""
if ON_GPU:  # Float32 is to mean the same in both, so that their choices can be compared.
    ENVIRONMENT["TRITON_F32_DEFAULT"] = "ieee"
    torch.backends.cudnn.allow_tf32 = False
USES_V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
"""Whether engines run vLLM's V2 model runner."""
N_TOKENS = 8
"""Longest answer that is compared."""
PLANS = {
    "three cuts": Plan(
        name="three cuts",
        cuts=(
            Cut(layer=2, keep=0.5, selector="diversity"),
            Cut(layer=4, keep=0.2, selector="diversity"),
            Cut(layer=6, keep=0.0),
        ),
    ),
    "before the decoder": Plan(
        name="before the decoder", cuts=(Cut(layer=0, keep=0.22, selector="diversity"),)
    ),
    "before and inside": Plan(
        name="before and inside",
        round_to=8,
        cuts=(
            Cut(layer=0, keep=0.5, selector="grid"),
            Cut(layer=4, keep=0.1, selector="diversity", params={"rule": "max_sum"}),
        ),
    ),
    "merging": Plan(name="merging", cuts=(Cut(layer=3, keep=0.25, selector="pooling"),)),
    "means": Plan(
        name="means",
        merge="mean",
        cuts=(
            Cut(layer=1, keep=0.4, selector="diversity"),
            Cut(layer=4, keep=0.1, selector="diversity"),
        ),
    ),
    "random, then none": Plan(
        name="random, then none",
        cuts=(Cut(layer=1, keep=0.4, selector="random"), Cut(layer=6, keep=0.0)),
    ),
    "attention": Plan(
        name="attention",
        cuts=(
            Cut(layer=2, keep=0.5, selector="attention"),
            Cut(layer=5, keep=0.2, selector="balanced"),
        ),
    ),
    "the question": Plan(
        name="the question",
        cuts=(
            Cut(layer=2, keep=0.6, selector="dart"),
            Cut(layer=4, keep=0.4, selector="sparsevlm"),
            Cut(layer=6, keep=0.1, selector="cdpruner"),
        ),
    ),
}


Pictures = list[Any] | Mapping[str, list[Any]]
"""Images of a prompt, or its images and videos by vLLM's words for their kinds."""
BLOCK = 32
"""Tokens of a KV block."""
SMALL_POOL = {"max_num_batched_tokens": 120, "num_gpu_blocks_override": 100, "max_model_len": 512}
"""Options with which requests are preempted, and chunks split images or prompts."""


def prompt(question: str, *, n_images: int = 1, before: str = "") -> str:
    """The built-in model's chat format."""
    return f"USER: {before}{'<image>' * n_images}\n{question} ASSISTANT:"


@dataclass
class Answers:
    """Answers to some prompts: their tokens, and what every cut kept of each prompt."""

    prompts: list[list[int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    kept: list[list[tuple[int, ...]]] = field(default_factory=list)


class Executor:
    """tpcal's executor on transformers.

    Args:
        dtype: Type of the model's numbers.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=dtype)
        self.model = model.eval().to(DEVICE)
        self.processor = AutoProcessor.from_pretrained(FOLDER)
        self.processor.tokenizer.padding_side = "left"

    def answers(
        self, plan: Plan, samples: Sequence[EmbeddedSample], n_tokens: int = N_TOKENS, **how: Any
    ) -> Answers:
        """Greedy answers, in batches of 25."""
        found = Answers()
        with tpcal.apply(self.model, plan) as handle, torch.inference_mode():
            for at in range(0, len(samples), 25):
                part = samples[at : at + 25]
                inputs = self.processor(
                    images=[s.image for s in part],
                    text=[prompt(s.question) for s in part],
                    return_tensors="pt",
                    padding=True,
                ).to(DEVICE)
                inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
                output = self.model.generate(
                    **inputs, do_sample=False, max_new_tokens=n_tokens, **how
                )
                report = handle.last
                assert report is not None
                self._note(found, inputs, output, [cut.kept for cut in report.cuts])
        return found

    def _note(
        self, found: Answers, inputs: Mapping[str, Any], output: torch.Tensor, kept: Any
    ) -> None:
        n = inputs["input_ids"].shape[1]
        for row, mask in enumerate(inputs["attention_mask"]):
            found.prompts.append(inputs["input_ids"][row, mask.bool()].tolist())
            found.tokens.append(until_end(output[row, n:].tolist()))
            found.kept.append([cut[row] for cut in kept])


def until_end(tokens: Sequence[int]) -> list[int]:
    """The tokens before the end of the text."""
    return list(tokens[: tokens.index(2)] if 2 in tokens else tokens)


MAX_TIES = 3
"""Questions of 200 whose answers may differ, if those in float64 are what was found."""


def assert_same(
    found: Answers, wanted: Answers, plan: Plan, questions: Sequence[EmbeddedSample]
) -> None:
    """Fails unless an engine gave the executor's answers and kept the same tokens.

    Args:
        found: What the engine gave.
        wanted: What the executor gave.
        plan: The plan.
        questions: What both were asked.
    """
    assert found.prompts == wanted.prompts
    other = [
        i
        for i in range(len(questions))
        if (found.tokens[i], found.kept[i]) != (wanted.tokens[i], wanted.kept[i])
    ]
    # Two tokens may differ from the others by equal distances up to float32's rounding, so that
    # the executor itself keeps another one in another batch. Float64 decides between them.
    assert len(other) <= MAX_TIES
    exact = Executor(torch.float64).answers(plan, [questions[i] for i in other])
    assert [found.tokens[i] for i in other] == exact.tokens
    assert [found.kept[i] for i in other] == exact.kept


class Engine:
    """An engine of vLLM in this process.

    Args:
        plan: File of the plan; None runs none.
        model: Folder of the model.
        settings: Settings in `additional_config` beside the plan.
        options: Options of vLLM.

    Attributes:
        llm: vLLM's class for offline use.
        kept: What every cut kept, by request: ranks among the visual tokens of its prompt.
        n_waited: Number of tokens that waited at the first cut.
    """

    def __init__(
        self,
        plan: Path | None,
        model: Path = FOLDER,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        from vllm import LLM

        self.kept: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self.n_waited = 0
        chosen = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "block_size": BLOCK,
            "distributed_executor_backend": "uni",
            "disable_log_stats": False,
            "limit_mm_per_prompt": {"image": 3},
            **(OF_GPUS if ON_GPU else {}),
            **options,
        }
        own = {"additional_config": {"tpcal": {"plan": str(plan), **(settings or {})}}}
        self.llm: Any = LLM(str(model), **chosen, **({} if plan is None else own))

    @property
    def scheduler(self) -> Any:
        """vLLM's scheduler."""
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def runner(self) -> Any:
        """vLLM's model runner."""
        worker = self.llm.llm_engine.model_executor.driver_worker
        return getattr(worker, "worker", worker).model_runner

    def answers(
        self,
        samples: Sequence[EmbeddedSample],
        n_tokens: int = N_TOKENS,
        *,
        before: str = "",
        **how: Any,
    ) -> Answers:
        """Greedy answers; all requests are given at once."""
        found = self.recorded(
            [(prompt(s.question, before=before), [s.image]) for s in samples], n_tokens, **how
        )
        found.tokens = [until_end(tokens) for tokens in found.tokens]
        return found

    def recorded(
        self, prompts: Sequence[tuple[str, Pictures]], n_tokens: int = N_TOKENS, **how: Any
    ) -> Answers:
        """Answers to texts with images or videos, and what was kept of them."""
        self.kept.clear()
        outputs = self.generate(prompts, n_tokens, **how)
        return self.noted(outputs, self.kept)

    def noted(self, outputs: Sequence[Any], kept: Mapping[str, list[tuple[int, ...]]]) -> Answers:
        """The answers in vLLM's outputs, with what was kept by request."""
        found = Answers()
        for output in outputs:
            found.prompts.append(list(output.prompt_token_ids))
            found.tokens.append(list(output.outputs[0].token_ids))
            # Request ids end with a part that is made in the engine.
            own = [k for name, k in kept.items() if name.split("-")[0] == output.request_id]
            found.kept.append(own[0] if own else [])
        return found

    def generate(
        self, prompts: Sequence[tuple[str, Pictures]], n_tokens: int = N_TOKENS, **how: Any
    ) -> list[Any]:
        """vLLM's outputs for texts with images or videos."""
        from vllm import SamplingParams

        params = SamplingParams(**{"temperature": 0, "max_tokens": n_tokens, **how})
        given = []
        for text, pictures in prompts:
            data = pictures if isinstance(pictures, Mapping) else {"image": pictures}
            data = {kind: list(some) for kind, some in data.items() if some}
            given.append({"prompt": text, **({"multi_modal_data": data} if data else {})})
        return self.llm.generate(given, params, use_tqdm=False)

    def counter(self, name: str) -> int:
        """The value of a counter of vLLM."""
        metrics = [m for m in self.llm.get_metrics() if m.name == f"vllm:{name}"]
        return int(sum(metric.value for metric in metrics))


@contextmanager
def engine(plan: Plan | None, folder: Path, **options: Any) -> Iterator[Engine]:
    """An engine whose cuts are recorded; only one at a time."""
    os.environ.update(ENVIRONMENT)
    from tpcal.integrations.vllm import runner
    from tpcal.integrations.vllm.pruning_step import PruningStep

    path = None if plan is None else folder / "plan.yaml"
    if plan is not None and path is not None:
        tpcal.save_plan(plan, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "PruningStep", _recording(PruningStep))
        made = Engine(path, **options)
        if "tensor_parallel_size" not in options:
            assert made.runner.vllm_config.use_v2_model_runner == USES_V2
        _RECORDER[0] = made
        try:
            yield made
        finally:
            _RECORDER[0] = None
            made.llm = None
            gc.collect()


class RecordsCuts:
    """What a worker in a process of its own does more, if `worker_extension_cls` names this."""

    kept: dict[str, list[tuple[int, ...]]]
    n_waited: int

    def record_cuts(self) -> None:
        """Records the cuts from now on, like `Engine`."""
        from tpcal.integrations.vllm import pruning_step, runner

        self.kept, self.n_waited = defaultdict(list), 0
        if _RECORDER[0] is None:
            vars(runner)["PruningStep"] = _recording(pruning_step.PruningStep)
        _RECORDER[0] = self

    def cuts(self) -> tuple[dict[str, list[tuple[int, ...]]], int]:
        """What was recorded: what every cut kept, by request, and how many tokens waited."""
        return dict(self.kept), self.n_waited


_RECORDER: list[Engine | RecordsCuts | None] = [None]


def _recording(kind: type[Any]) -> type[Any]:
    class Recording(kind):
        def _cut(self, prepared: Any, states: Any) -> Any:
            recorder = _RECORDER[0]
            assert recorder is not None
            left = super()._cut(prepared, states)
            number = self._numbers[prepared.cut.layer]
            for chunk, places in zip(self.chunks, self._places, strict=True):
                before = 0
                for span in chunk.spans:
                    if span in chunk.complete:
                        cuts = recorder.kept[chunk.request]
                        cuts += [()] * (number + 1 - len(cuts))
                        ranks = before + np.flatnonzero(np.isin(span.places, places))
                        cuts[number] += tuple(ranks.tolist())
                    before += span.length
            if number == 0:
                recorder.n_waited += sum(len(chunk.waiting) for chunk in self.chunks)
            return left

    return Recording
