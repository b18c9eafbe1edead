"""Processors that want packages which are not installed say which, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from releases import skip_elsewhere
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.utils import is_num2words_available, is_torchvision_available

from tpcal.calibrate.inputs import models
from tpcal.plans.errors import UsageError

SAVED = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor"),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMImageProcessor"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor"),
    "mistral3": ("PixtralProcessor", "PixtralImageProcessor"),
    "kimi_k25": ("Kimi_K25Processor", "Kimi_K25ImageProcessor"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("kind", SAVED)
def test_a_processor_without_torchvision_names_it(tmp_path: Path, kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        skip_elsewhere(f"it has no {kind}")
    processor, images = SAVED[kind]
    tokenizer().save_pretrained(tmp_path)
    saved = {"processor_class": processor, "image_processor_type": images}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UsageError) as caught:
        models.load(str(tmp_path), device="cpu")
    assert str(caught.value) == (
        f"The processor of {tmp_path} needs torchvision, which is not installed. "
        "Way out: pip install torchvision."
    )


@pytest.mark.skipif(is_num2words_available(), reason="num2words is installed")
def test_the_second_package_is_named_too() -> None:
    with pytest.raises(ImportError) as caught:
        SmolVLMProcessor(None, tokenizer(), None)
    assert models._missing_package(str(caught.value)) == "num2words"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_a_part_that_transformers_leaves_out_without_torchvision_names_it() -> None:
    reason = "module VIDEO_PROCESSOR_MAPPING has no attribute '_extra_content'"
    assert models._missing_package(reason) == "torchvision"
    before_5_20 = "'NoneType' object has no attribute '__module__'"
    assert models._missing_package(before_5_20) == "torchvision"


def test_packages_that_are_installed_are_not_to_blame() -> None:
    assert (
        models._missing_package("transformers requires torch, but PyTorch was not found") is None
    )
    assert models._missing_package("the available values of avatars") is None
