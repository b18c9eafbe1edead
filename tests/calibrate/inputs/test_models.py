from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tpcal.calibrate.inputs import model_digests, models
from tpcal.calibrate.inputs.model_files import find_model
from tpcal.calibrate.inputs.models import Loaded
from tpcal.plans import hub
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.model_aliases import ALIASES


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a network; nothing is asked, so the test is fast anywhere."""
    monkeypatch.setattr(hub, "reachable", lambda: False)


def test_a_local_folder_is_loaded_whole(loaded: Loaded, model_folder: Path) -> None:
    assert loaded.name == str(model_folder)
    assert loaded.identity.family == "llava"
    assert loaded.identity.n_layers == loaded.shape.n_layers == 4
    assert loaded.shape.hidden == 32
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32


def test_precision_can_be_chosen(model_folder: Path) -> None:
    loaded = models.load(str(model_folder), device="cpu", dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.shape.dtype_bytes == 2


def test_the_weights_digest_tells_retrained_models_apart(
    loaded: Loaded, model_folder: Path
) -> None:
    again = models.load(str(model_folder), device="cpu").model
    assert model_digests.weights_digest(again) == model_digests.weights_digest(loaded.model)
    with torch.no_grad():
        next(again.parameters()).flatten()[0].add_(1e-3)
    assert model_digests.weights_digest(again) != model_digests.weights_digest(loaded.model)


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize("name", ["llava-1.5-7b", "LLaVA-1.5-7B", "llava-1.5-7b@main"])
def test_without_the_hub_the_error_names_the_file_and_the_way_out(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        models.load(name, device="cpu")
    message = str(caught.value)
    assert "config.json of llava-hf/llava-1.5-7b-hf" in message
    assert "cannot be reached" in message
    assert "--model DIR" in message
    assert "\n" not in message


@pytest.mark.usefixtures("_offline")
def test_a_revision_is_passed_on() -> None:
    with pytest.raises(UsageError, match=re.escape("org/name@v2")):
        models.load(find_model("org/name@v1", "v2"), device="cpu")
    with pytest.raises(UsageError, match=re.escape("org/name@v1")):
        models.load("org/name@v1", device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lava-1.5-7b", "Did you mean llava-1.5-7b"),
        ("zzz", "Known: embedded, llava-1.5-7b"),
        ("./nowhere", "No model folder at ./nowhere"),
        ("/no/where", "No model folder at /no/where"),
    ],
)
def test_unknown_names_get_a_hint(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        models.load(name, device="cpu")


def test_every_alias_is_a_hub_id() -> None:
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", target) for target in ALIASES.values())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        models.load(str(tmp_path), device="cpu")


def test_a_model_without_images_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="must be a vision-language model; got LlamaForCausalLM"):
        models.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "nonsense"}'])
def test_a_broken_config_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        models.load(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_model_with_code_of_its_own_is_refused_with_the_way_out(tmp_path: Path) -> None:
    config = {"model_type": "own_chat", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"needs Python code of its own\. .* often ends in -hf"):
        models.load(str(tmp_path), device="cpu")


def test_a_model_without_a_processor_is_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    with pytest.raises(UsageError, match=r"processor"):
        models.load(str(tmp_path), device="cpu")


def test_missing_weights_are_one_line(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be used"):
        models.load(str(tmp_path), device="cpu")


def test_damaged_weights_are_one_line(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be used"):
        models.load(str(tmp_path), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_without_cuda_is_refused(model_folder: Path) -> None:
    with pytest.raises(UsageError, match="needs CUDA"):
        models.load(str(model_folder), device="cuda")


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:x"])
def test_unknown_devices_are_refused(model_folder: Path, device: str) -> None:
    with pytest.raises(UsageError, match="device must be"):
        models.load(str(model_folder), device=device)


def test_unknown_precisions_are_refused(model_folder: Path) -> None:
    with pytest.raises(UsageError, match="dtype must be one of"):
        models.load(str(model_folder), device="cpu", dtype="int3")


def test_out_of_memory_is_told_apart_from_other_failures() -> None:
    from tpcal.calibrate.inputs.memory_guard import memory_guard

    def fail(error: Exception) -> None:
        with memory_guard("Calibration", "Use less."):
            raise error

    with pytest.raises(RunFailed, match="Calibration ran out of memory. Use less."):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RunFailed, match="ran out of memory"):
        fail(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte"))
    with pytest.raises(RunFailed, match="ran out of memory"):
        fail(MemoryError())
    with pytest.raises(RuntimeError, match="shapes"):
        fail(RuntimeError("shapes do not match"))
