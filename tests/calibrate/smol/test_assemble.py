"""The second built-in model: found by name, put together from an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.smol import language_model
from tpcal.calibrate.smol.assemble import ADAPTERS, CACHE_VARIABLE, assembled_folder
from tpcal.plans.errors import UsageError

WIDTHS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """Adapters of rank 1 that change nothing, and a random projector."""
    torch.manual_seed(0)
    state = {}
    for layer in range(30):
        for name, (n_in, n_out) in WIDTHS.items():
            state[f"layers.{layer}.{name}.down"] = torch.randn(1, n_in)
            state[f"layers.{layer}.{name}.up"] = torch.zeros(n_out, 1)
    for i, n_in in ((1, 128), (2, 576)):
        state[f"projector.linear_{i}.weight"] = torch.randn(576, n_in) / n_in**0.5
        state[f"projector.linear_{i}.bias"] = torch.zeros(576)
    save_file(state, tmp_path / "adapters.safetensors")
    return tmp_path / "adapters.safetensors"


def test_the_trained_weights_are_small_and_belong_to_every_layer(adapters: Path) -> None:
    assert ADAPTERS.stat().st_size < 12 * 2**20
    with safe_open(ADAPTERS, "pt") as trained, safe_open(adapters, "pt") as random:
        assert set(trained.keys()) == set(random.keys())
        for name in trained.keys():  # noqa: SIM118
            shape = [n if n != 1 else 16 for n in random.get_slice(name).get_shape()]
            assert trained.get_slice(name).get_shape() == shape, name
        ups = [trained.get_tensor(name) for name in trained.keys() if name.endswith(".up")]  # noqa: SIM118
    assert all(up.isfinite().all() and up.count_nonzero() for up in ups)


@pytest.mark.skipif(
    find_spec(language_model.PACKAGE) is not None, reason="the package is installed"
)
def test_a_missing_package_is_named_with_the_commands_that_install_it(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(UsageError) as caught:
        assembled_folder(adapters)
    assert all(command in str(caught.value) for command in language_model.INSTALL)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_another_file_than_the_one_trained_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in (language_model.PACKAGE, "gguf"):
        (tmp_path / package).mkdir()
        # To import the package would need its own requirements.
        (tmp_path / package / "__init__.py").write_text("raise ImportError('imported')")
    (tmp_path / language_model.PACKAGE / language_model.FILE).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="must have the SHA-256 b179c952"):
        language_model.find_weights()


def test_the_built_in_questions_are_for_both_built_in_models() -> None:
    for name in (None, "embedded", "smol"):
        assert DataChoice().for_model(ModelChoice(name)).data is None
    assert DataChoice().for_model(ModelChoice("smol-2")).data == "lite"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    find_spec(language_model.PACKAGE) is None or find_spec("gguf") is None,
    reason=f"needs {' && '.join(language_model.INSTALL)}",
)
def test_the_real_model_is_put_together_once(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = assembled_folder(adapters)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert assembled_folder(adapters) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    loaded = models.load(str(folder), device="cpu")
    assert loaded.shape.n_layers == 30
    tokenizer = loaded.processor.tokenizer
    assert tokenizer("<image>")["input_ids"] == [16]
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
