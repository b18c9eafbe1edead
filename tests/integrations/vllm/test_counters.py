"""What a server counts of the requests that arrive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from served import PLANS

from tpcal.integrations.vllm.server_settings import Settings

pytestmark = [pytest.mark.vllm, pytest.mark.usual]


def _arrive(own: dict[str, Any], model: str, *requests: Any) -> None:
    from tpcal.integrations.vllm import counters

    served = SimpleNamespace(served_model_name=model)
    config = SimpleNamespace(additional_config={"tpcal": own}, model_config=served)
    for asked in requests:
        counters._arrived(config, asked)


def _counted(name: str, model: str, **labels: str) -> float | None:
    from prometheus_client import REGISTRY

    found = REGISTRY.get_sample_value(f"tpcal_{name}_total", {"model_name": model, **labels})
    return None if found is None else float(found)


def _image(modality: str, n: int) -> Any:
    from vllm.multimodal.inputs import PlaceholderRange

    place = PlaceholderRange(offset=5, length=n)
    return SimpleNamespace(modality=modality, mm_position=place)


def _request(*features: Any, **extra: str) -> Any:
    params = SimpleNamespace(extra_args=extra, prompt_logprobs=None)
    return SimpleNamespace(
        mm_features=list(features), sampling_params=params, prompt_token_ids=[0] * 200
    )


def test_what_a_plan_keeps_and_why_requests_are_skipped() -> None:
    own = Settings(PLANS["three cuts"]).passed_on()
    both = _request(_image("image", 100), _image("video", 30))
    _arrive(own, "a", both, both, _request(_image("image", 50), tpcal="off"), _request())
    assert _counted("visual_tokens_seen", "a") == 2 * 130 + 50
    # 100, of which 50, 20 and none are left, and 30 of the video, twice, and the unpruned 50
    kept = [_counted("visual_tokens_kept", "a", layer=layer) for layer in "246"]
    assert kept == [210, 150, 110]
    assert _counted("requests_pruned", "a") == 2
    assert _counted("requests_skipped", "a", reason="opted_out") == 1
    assert _counted("requests_skipped", "a", reason="no_image") == 1


def test_the_kill_switch_is_counted() -> None:
    _arrive({"plan": "missing.yaml", "off": True}, "b", _request(_image("image", 50)))
    assert _counted("visual_tokens_seen", "b") == 50
    assert _counted("requests_skipped", "b", reason="kill_switch") == 1
    assert _counted("requests_pruned", "b") is None


def test_a_server_that_names_no_plan_counts_nothing() -> None:
    _arrive({"untried": True}, "c", _request(_image("image", 50)))
    assert _counted("visual_tokens_seen", "c") is None
