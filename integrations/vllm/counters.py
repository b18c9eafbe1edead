"""Counters of what a plan does, at the place where vLLM shows its own: ``/metrics``.

What is pruned of a request follows from the request and the plan alone. The process that receives
requests therefore counts them itself, where vLLM's own counters live; with several such processes
prometheus_client adds them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from prometheus_client import Counter

from tpcal.integrations.vllm import touchpoints, video_positions
from tpcal.integrations.vllm.requests import KILL_SWITCH, Requests, n_visual, problem
from tpcal.integrations.vllm.server_settings import KEY, received

# Not "vllm:", because vLLM takes all counters of this name away when it makes its own.
SEEN = Counter(
    "tpcal_visual_tokens_seen", "Visual tokens of the requests that arrived.", ["model_name"]
)
KEPT = Counter(
    "tpcal_visual_tokens_kept",
    "Visual tokens of these requests that are left from a layer on, by the layer of the cut.",
    ["model_name", "layer"],
)
PRUNED = Counter(
    "tpcal_requests_pruned",
    "Requests with an image or a video that the plan prunes.",
    ["model_name"],
)
SKIPPED = Counter(
    "tpcal_requests_skipped", "Requests that are served unpruned.", ["model_name", "reason"]
)


def count_requests() -> None:
    """Lets this process count the requests that it receives; a second call changes nothing."""
    touchpoints.after_each_request(_arrived)


def _arrived(config: Any, request: Any) -> None:
    own = config.additional_config.get(KEY, {})
    model = str(config.model_config.served_model_name)
    if own.get("off"):
        SEEN.labels(model).inc(n_visual(request))
        SKIPPED.labels(model, KILL_SWITCH).inc()
    elif "text" in own:
        if found := problem(request):
            raise ValueError(found)  # which vLLM's servers answer with status 400
        if own["videos"]:
            video_positions.note(config, request)
        count(_requests(own["text"], own["videos"]), request, model)


@cache
def _requests(text: str, videos: str) -> Requests:
    return Requests.of(received({KEY: {"text": text, "videos": videos, "untried": False}}))


def count(requests: Requests, request: Any, model: str) -> None:
    """Counts a request of a server that runs a plan.

    Args:
        requests: What the plan prunes of requests.
        request: A request as the server holds it.
        model: Name of the served model.
    """
    seen, reason = n_visual(request), requests.unpruned_because(request)
    SEEN.labels(model).inc(seen)
    for layer, n_kept in kept(requests, request).items():
        KEPT.labels(model, str(layer)).inc(n_kept)
    (SKIPPED.labels(model, reason) if reason else PRUNED.labels(model)).inc()


def kept(requests: Requests, request: Any) -> Mapping[int, int]:
    """Number of the request's visual tokens that are left from the layer of each cut on.

    Args:
        requests: What the plan prunes of requests.
        request: A request as the server holds it.
    """
    plan, spans = requests.plan, requests.pruned(request).spans
    whole = n_visual(request) - sum(span.length for span in spans)
    counts = [plan.counts(span.length) for span in spans]
    return {
        cut.layer: whole + sum(count[number] for count in counts)
        for number, cut in enumerate(plan.cuts)
    }
