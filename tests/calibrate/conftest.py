"""A tiny model in the embedded model's form (4 layers, 16 visual tokens), saved as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tools.embedded.model import Sizes, new_model, new_processor
from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples, load_samples

SIZES = Sizes(
    patch=24, tower_width=32, tower_layers=1, tower_ffn=32, width=32, layers=4, ffn=48, heads=2
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # several threads are slower at this size


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with its processor, as a local folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    model = new_model(SIZES, seed=0)
    model.save_pretrained(folder)
    text = model.config.text_config
    GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=0).save_pretrained(folder)
    new_processor(SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> Loaded:
    """The tiny model, loaded on the CPU."""
    return models.load(str(model_folder), device="cpu")


@pytest.fixture(scope="session")
def scenes() -> Samples:
    """Six built-in scenes of six groups."""
    return load_samples(n=6)
