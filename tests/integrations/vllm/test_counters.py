"""What a server counts of the requests that arrive."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from served import PLANS

from tpcal.integrations.vllm.server_settings import Settings
from tpcal.plans.engines import WHOLE

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
    return SimpleNamespace(modality=modality, mm_position=place, mm_hash="")


def _request(*features: Any, **extra: str) -> Any:
    params = SimpleNamespace(extra_args=extra, prompt_logprobs=None)
    return SimpleNamespace(
        mm_features=list(features), sampling_params=params, prompt_token_ids=[0] * 200
    )


def test_what_a_plan_keeps_and_why_requests_are_skipped() -> None:
    own = Settings(PLANS["three cuts"]).passed_on()
    both = _request(_image("image", 100), _image("image", 30))
    video = _request(_image("image", 100), _image("video", 40))
    _arrive(own, "a", both, both, video, _request(_image("image", 50), tpcal="off"), _request())
    assert _counted("visual_tokens_seen", "a") == 2 * 130 + 140 + 50
    # 130, of which 65, 26 and none are left, twice, and the unpruned 140 and 50
    kept = [_counted("visual_tokens_kept", "a", layer=layer) for layer in "246"]
    assert kept == [320, 242, 190]
    assert _counted("requests_pruned", "a") == 2
    assert _counted("requests_skipped", "a", reason="video") == 1
    assert _counted("requests_skipped", "a", reason="opted_out") == 1
    assert _counted("requests_skipped", "a", reason="no_image") == 1


def test_videos_are_counted_as_images_are_where_they_are_pruned() -> None:
    own = replace(Settings(PLANS["three cuts"]), videos=WHOLE).passed_on()
    both = _request(_image("image", 100), _image("video", 30))
    both.mm_features[1].data = {}  # no grid, as of a model without M-RoPE
    _arrive(own, "v", both)
    kept = [_counted("visual_tokens_kept", "v", layer=layer) for layer in "246"]
    assert (kept, _counted("requests_pruned", "v")) == ([65, 26, 0], 1)


def test_the_kill_switch_is_counted() -> None:
    _arrive({"plan": "missing.yaml", "off": True}, "b", _request(_image("image", 50)))
    assert _counted("visual_tokens_seen", "b") == 50
    assert _counted("requests_skipped", "b", reason="kill_switch") == 1
    assert _counted("requests_pruned", "b") is None


def test_a_server_that_names_no_plan_counts_nothing() -> None:
    _arrive({"untried": True}, "c", _request(_image("image", 50)))
    assert _counted("visual_tokens_seen", "c") is None
