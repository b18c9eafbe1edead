"""The adapter for VLMEvalKit, with a stand-in for the two names that it takes from there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.integrations.answerer import Answerer
from tpcal.integrations.chat_prompts import read_prompt
from tpcal.integrations.decoding import read_decoding
from tpcal.plans.errors import UsageError


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter's module, imported beside a `BaseModel` and a table of models."""
    base, config = ModuleType("vlmeval.vlm.base"), ModuleType("vlmeval.config")
    base.BaseModel = type("BaseModel", (), {})  # type: ignore[attr-defined]
    config.supported_VLM = {}  # type: ignore[attr-defined]
    for name in ("vlmeval", "vlmeval.vlm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vlmeval.vlm.base", base)
    monkeypatch.setitem(sys.modules, "vlmeval.config", config)
    monkeypatch.delitem(sys.modules, "tpcal.integrations.vlmevalkit", raising=False)
    yield importlib.import_module("tpcal.integrations.vlmevalkit")
    sys.modules.pop("tpcal.integrations.vlmevalkit", None)


def test_a_message_gets_the_answer_of_the_plan(
    adapter: Any, loaded: Loaded, scenes: Samples, plan_file: str, tmp_path: Path
) -> None:
    how = {"max_new_tokens": 8, "load_options": {"device": "cpu"}}
    adapter.register("pruned", "embedded", plan_file, **how)
    model = sys.modules["vlmeval.config"].supported_VLM["pruned"]()
    answerer = Answerer(loaded, plan_file)
    try:
        for i, sample in enumerate(list(scenes)[:3]):
            path = str(tmp_path / f"{i}.png")
            sample.images[0].save(path)
            message = [
                {"type": "image", "value": path},
                {"type": "text", "value": sample.question},
            ]
            content = [{"type": "image", "image": path}, {"type": "text", "text": sample.question}]
            turn = {"role": "user", "content": content}
            prompt = read_prompt(loaded.processor, [turn], "t")
            (expected,) = answerer.answer([prompt], read_decoding({}, 8))
            assert model.generate_inner(message, dataset="MME") == expected.text
    finally:
        answerer.remove()
    named = sys.modules["vlmeval.config"].supported_VLM["pruned"]
    with pytest.raises(UsageError, match="--use-vllm must be left out"):
        named(use_vllm=True)
    with pytest.raises(UsageError, match="A message of MVBench must hold text and images; got v"):
        model.generate_inner([{"type": "video", "value": "a.mp4"}], dataset="MVBench")
