"""What does not go together with a plan stops the start of a server with one clear error."""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from served import ENVIRONMENT, ON_GPU, PLANS

import tpcal
from tpcal import Cut, Plan
from tpcal.calibrate.embedded import FOLDER
from tpcal.integrations.vllm import configuration, touchpoints
from tpcal.integrations.vllm.server_settings import Settings
from tpcal.plans.engines import WHOLE
from tpcal.plans.errors import FitError, TpcalError, UsageError
from tpcal.plans.plan_records import Condition, ModelIdentity

pytestmark = [pytest.mark.vllm, pytest.mark.usual]


def _config(
    plan: Plan,
    folder: Path,
    own: dict[str, Any] | None = None,
    model: Path = FOLDER,
    **options: Any,
) -> Any:
    os.environ.update(ENVIRONMENT)
    from vllm.engine.arg_utils import EngineArgs

    tpcal.save_plan(plan, folder / "plan.yaml")
    given = {"plan": str(folder / "plan.yaml"), **(own or {})}
    chosen = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, **options}
    args = EngineArgs(str(model), additional_config={"tpcal": given}, **chosen)
    return args.create_engine_config()


def test_a_plan_brings_its_worker_and_scheduler(tmp_path: Path) -> None:
    config = _config(PLANS["three cuts"], tmp_path)
    kind = "gpu_worker.PlanGpuWorker" if ON_GPU else "cpu_worker.PlanCpuWorker"
    assert config.parallel_config.worker_cls == f"tpcal.integrations.vllm.{kind}"
    assert config.scheduler_config.scheduler_cls.startswith("tpcal.integrations.vllm.scheduler.")


def test_a_plan_takes_the_v1_runner_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    _config(PLANS["three cuts"], tmp_path, {"off": True})
    assert "VLLM_USE_V2_MODEL_RUNNER" not in os.environ
    _config(PLANS["three cuts"], tmp_path)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"


@pytest.mark.parametrize("own", [{"off": True}, None])
def test_without_a_plan_vllm_is_left_alone(
    own: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is None:
        monkeypatch.setenv("TPCAL_OFF", "1")
    config = _config(PLANS["three cuts"], tmp_path, own)
    plain = touchpoints.GPU_WORKER if ON_GPU else touchpoints.CPU_WORKER
    assert config.parallel_config.worker_cls == plain
    assert config.scheduler_config.scheduler_cls is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ({"disable_hybrid_kv_cache_manager": True}, "--disable-hybrid-kv-cache-manager"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "--speculative-config",
        ),
        ({"model_impl": "transformers"}, "--model-impl transformers"),
        ({"runner": "pooling", "convert": "embed"}, "--runner pooling"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
    ],
)
def test_options_that_do_not_go_together_with_a_plan(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(FitError, match=named):
        _config(PLANS["three cuts"], tmp_path, **options)


def test_a_server_that_is_not_written_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(FitError, match="VLLM_USE_RUST_FRONTEND does not go together"):
        _config(PLANS["three cuts"], tmp_path)


def test_a_model_without_images_is_named(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(FitError, match=r"^Qwen2ForCausalLM.*knows no images of this model"):
        _config(PLANS["three cuts"], tmp_path, model=tmp_path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(2, 0.5, "visionzip"), "needs the vision tower's attention"),
        (Cut(2, 0.5, "diversity", condition=Condition(0.1)), "Remove the condition"),
        (Cut(9, 0.5, "diversity"), "layer must be"),
    ],
)
def test_cuts_that_vllm_cannot_make(cut: Cut, message: str, tmp_path: Path) -> None:
    with pytest.raises(FitError, match=message):
        _config(Plan(cuts=(cut,)), tmp_path)


def test_plans_that_count_merged_tokens(tmp_path: Path) -> None:
    plan = Plan(cuts=PLANS["three cuts"].cuts, merge="proportional")
    with pytest.raises(FitError, match="merge must be absent or mean in vLLM; got proportional"):
        _config(plan, tmp_path)


def test_a_plan_for_another_model(tmp_path: Path) -> None:
    plan = Plan(cuts=PLANS["three cuts"].cuts, model=ModelIdentity(n_layers=8, family="qwen2_vl"))
    with pytest.raises(FitError, match="model.family must be llava"):
        _config(plan, tmp_path)


def test_a_family_whose_images_are_attended_in_both_directions(tmp_path: Path) -> None:
    from transformers import Gemma3Config

    config = Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        text_config={"num_hidden_layers": 8, "sliding_window": 64},
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(FitError, match=r"(?s)attended in both directions.*have a sliding window"):
        _config(PLANS["before the decoder"], tmp_path, model=tmp_path)


def test_a_plan_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No plan at"):
        _config(PLANS["three cuts"], tmp_path, {"plan": str(tmp_path / "other.yaml")})


def _gpu_config(folder: Path, **options: Any) -> Any:
    touchpoints.prefer_v1_runner()
    config = _config(PLANS["three cuts"], folder, {"off": True}, **options)
    config.parallel_config.worker_cls = touchpoints.GPU_WORKER
    return config


def _with_graphs(folder: Path, **chosen: Any) -> Any:
    """A config as vLLM makes it for a GPU by default, except for what is chosen."""
    from vllm.config import CompilationMode, CUDAGraphMode

    config = _gpu_config(folder, enforce_eager=False)
    usual = {
        "mode": CompilationMode.VLLM_COMPILE,
        "cudagraph_mode": CUDAGraphMode.FULL_AND_PIECEWISE,
    }
    for name, value in {**usual, "splitting_ops": None, **chosen}.items():
        setattr(config.compilation_config, name, value)
    config.compilation_config.set_splitting_ops_for_v1(all2all_backend="naive")
    return config


def test_a_gpu_gets_piecewise_graphs_unless_it_runs_eagerly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.config import CUDAGraphMode

    from tpcal.integrations.vllm import plugin

    found = []
    for config in (_with_graphs(tmp_path), _gpu_config(tmp_path)):
        caplog.clear()
        plugin.prepare(config, Settings(PLANS["three cuts"]))
        said = any("records piecewise CUDA graphs" in line for line in caplog.messages)
        found.append((config.compilation_config.cudagraph_mode, said))
    assert found == [(CUDAGraphMode.PIECEWISE, True), (CUDAGraphMode.NONE, False)]


def test_a_plan_starts_on_a_gpu_with_graphs_and_without(tmp_path: Path) -> None:
    assert configuration.config_problems(_with_graphs(tmp_path), untried=False) == []
    assert configuration.config_problems(_gpu_config(tmp_path), untried=False) == []


def test_graphs_with_attention_in_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import CUDAGraphMode

    other: list[dict[str, Any]] = [
        {"cudagraph_mode": CUDAGraphMode.FULL},
        {"cudagraph_mode": CUDAGraphMode.FULL_DECODE_ONLY},
        {"splitting_ops": ["vllm::unified_attention_with_output"]},
        {"use_inductor_graph_partition": True},
    ]
    configs = [_with_graphs(tmp_path, **chosen) for chosen in other]
    found = [configuration.config_problems(config, untried=True) for config in configs]
    assert [len(problems) for problems in found] == [1] * len(other)
    assert all("piecewise, with attention outside them" in one for (one,) in found)
    config = _with_graphs(tmp_path)
    assert configuration.config_problems(config, untried=True) == []
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    assert len(configuration.config_problems(config, untried=True)) == 1


def test_a_compiled_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="must not ask for mode 1"):
        _config(PLANS["three cuts"], tmp_path, enforce_eager=False, compilation_config={"mode": 1})


def test_the_v2_runner_is_untried_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _gpu_config(tmp_path)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    (problem,) = configuration.config_problems(config, untried=False)
    assert "Set VLLM_USE_V2_MODEL_RUNNER=0." in problem
    assert configuration.config_problems(config, untried=True) == []


def test_gpus_of_amd_are_untried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _gpu_config(tmp_path)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    (problem,) = configuration.config_problems(config, untried=False)
    assert "not on those of AMD" in problem
    assert configuration.config_problems(config, untried=True) == []


def test_several_gpus_are_untried(tmp_path: Path) -> None:
    config = _gpu_config(tmp_path)
    config.parallel_config.tensor_parallel_size = 2
    (problem,) = configuration.config_problems(config, untried=False)
    assert problem.startswith("--tensor-parallel-size is tried on CPUs")
    assert configuration.config_problems(config, untried=True) == []


@pytest.mark.parametrize(
    ("named", "used", "said"),
    [
        (None, "TRITON_ATTN", "takes the attention backend TRITON_ATTN"),
        ("TRITON_ATTN", "TRITON_ATTN", None),
        (
            "FLASH_ATTN",
            "FLASH_ATTN",
            "over the attention backend TRITON_ATTN, not over FLASH_ATTN",
        ),
    ],
)
def test_a_gpu_takes_the_attention_that_plans_ran_over_unless_told_otherwise(
    named: str | None,
    used: str,
    said: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tpcal.integrations.vllm import plugin

    config = _gpu_config(tmp_path, **({} if named is None else {"attention_backend": named}))
    plugin.prepare(config, Settings(PLANS["three cuts"]))
    assert config.attention_config.backend.name == used
    assert config.parallel_config.worker_cls.endswith(".PlanGpuWorker")
    lines = [line for line in caplog.messages if "attention backend" in line]
    assert [said in line for line in lines] == ([True] if said else [])


def test_attention_that_no_plan_ran_over_is_untried(tmp_path: Path) -> None:
    config = _gpu_config(tmp_path, attention_backend="FLASHINFER")
    (problem,) = configuration.config_problems(config, untried=False)
    assert "must be TRITON_ATTN or FLASH_ATTN" in problem
    assert "got FLASHINFER" in problem
    assert configuration.config_problems(config, untried=True) == []


def test_videos_without_sizes_are_refused(tmp_path: Path) -> None:
    config = _config(PLANS["three cuts"], tmp_path, {"off": True})
    config.model_config.multimodal_config.mm_processor_cache_type = "shm"
    (problem,) = configuration.config_problems(config, untried=True, videos=WHOLE)
    assert problem.startswith("--mm-processor-cache-type shm does not go together with a plan")
    assert configuration.config_problems(config, untried=True) == []


def test_a_version_whose_parts_have_moved_is_refused_however_untried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = touchpoints.Touchpoint("vllm.config", "Missing")
    monkeypatch.setattr(touchpoints, "TOUCHPOINTS", (gone,))
    with pytest.raises(FitError, match=r"vllm.config.Missing is gone"):
        _config(PLANS["three cuts"], tmp_path, {"untried": True})


def test_a_plan_starts_although_another_plugin_wraps_the_same_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from tpcal.integrations.vllm import plugin

    plain = EngineArgs.create_engine_config
    while hasattr(plain, "__wrapped__"):  # vLLM's own, as before any plugin
        plain = plain.__wrapped__

    @wraps(plain)
    def other(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    monkeypatch.setattr(EngineArgs, "create_engine_config", other)
    plugin.register()
    config = _config(PLANS["three cuts"], tmp_path)
    assert config.scheduler_config.scheduler_cls.startswith("tpcal.integrations.vllm.scheduler.")
    ours = EngineArgs.create_engine_config
    plugin.register()
    assert EngineArgs.create_engine_config is ours


def test_a_cpu_keeps_its_attention(tmp_path: Path) -> None:
    if not ON_GPU:
        assert _config(PLANS["three cuts"], tmp_path).attention_config.backend is None


def test_an_unknown_version_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touchpoints, "installed_version", lambda: "0.99.1")
    with pytest.raises(
        TpcalError, match=r"vLLM must be 0.31.x or 0.32.x, .* got 0.99.1. .*untried=true"
    ):
        _config(PLANS["three cuts"], tmp_path)
    assert _config(PLANS["three cuts"], tmp_path, {"untried": True})


def test_the_touchpoints_are_as_they_were_read() -> None:
    assert touchpoints.problems(v2=True) == []
    assert not any(point.problem() for point in touchpoints.IN_MODELS)


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        (touchpoints.Touchpoint("vllm.config", "Missing"), "vllm.config.Missing is gone."),
        (touchpoints.Touchpoint("vllm.no_such_module", "X"), "vllm.no_such_module.X is gone."),
        (
            touchpoints.Touchpoint("vllm.forward_context", "ForwardContext", ("moved",)),
            "vllm.forward_context.ForwardContext has no moved.",
        ),
    ],
)
def test_a_touchpoint_that_moved_is_named(point: touchpoints.Touchpoint, problem: str) -> None:
    assert point.problem() == problem
