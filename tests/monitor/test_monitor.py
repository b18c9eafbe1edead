"""A monitor counts, compares, raises alarms once, and never disturbs the request."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

import tpcal
from tpcal.calibrate.embedded import FOLDER, samples
from tpcal.monitor.monitor import CHANGED_ANSWERS, Monitor
from tpcal.monitor.monitor_settings import MonitorSettings
from tpcal.plans.errors import UsageError
from tpcal.plans.input_sizes import InputSizes, RequestSize
from tpcal.plans.plan_records import Certificate, Cut, Plan

BLIND = Plan((Cut(0, 0.0),), name="blind")
MILD = Plan((Cut(6, 0.9, "grid"),), name="mild")
WATCH = MonitorSettings(share=1, limit=0.05, shadowing="inline", n_reference=4)


@pytest.fixture(scope="module")
def served():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def requests(served):
    """Inputs of eight questions with an image each, and of one without."""
    asked = samples("eval", 8)
    made = [
        served[1](s.image, f"USER: <image> {s.question} ASSISTANT:", return_tensors="pt")
        for s in asked
    ]
    return [*made, served[1](text="USER: Is there a square ? ASSISTANT:", return_tensors="pt")]


def serve(monitor, requests):
    return [monitor.generate(inputs, max_new_tokens=3, do_sample=False) for inputs in requests]


def test_a_prompt_of_embeddings_is_compared_too(served, requests):
    model = served[0]
    embeds = model.get_input_embeddings()(requests[0]["input_ids"])
    given = {**requests[0], "inputs_embeds": embeds}
    del given["input_ids"]
    with tpcal.apply(model, MILD) as handle, Monitor(*served, handle, WATCH) as monitor:
        serve(monitor, [requests[0], given])
    assert (monitor.state.n_compared, monitor.state.n_failed) == (2, 0)
    assert monitor.state.n_changed == 0


def test_answers_are_those_of_the_plan_and_a_mild_plan_raises_no_alarm(served, requests):
    with tpcal.apply(served[0], MILD) as handle, Monitor(*served, handle, WATCH) as monitor:
        wanted = [served[0].generate(**r, max_new_tokens=3, do_sample=False) for r in requests]
        for given, ids in zip(serve(monitor, requests), wanted, strict=True):
            assert torch.equal(given, ids)
    state = monitor.state
    assert (state.n_requests, state.n_compared, state.n_visual) == (9, 8, 8 * 144)
    assert (state.n_dropped, state.n_failed, state.n_unpruned) == (0, 0, 0)
    assert state.n_changed == 0
    assert state.interval[0] == 0
    assert state.alarms == ()
    assert not state.is_off


def test_a_plan_that_changes_answers_is_switched_off_and_tells_it_once(served, requests, caplog):
    told = []
    settings = replace(WATCH, switch_off=True)
    with tpcal.apply(served[0], BLIND) as handle:
        monitor = Monitor(*served, handle, settings, on_alarm=told.append)
        serve(monitor, requests[:8] * 2)
        assert handle.is_off
        before = monitor.state
        serve(monitor, requests[:2])
    state = monitor.state
    assert [alarm.kind for alarm in state.alarms] == [CHANGED_ANSWERS]
    assert told == list(state.alarms)
    assert "More than 0.05 of the answers change" in told[0].message
    assert "The plan was switched off." in caplog.text
    assert state.n_unpruned == before.n_unpruned + 2
    assert state.n_requests == before.n_requests < 16
    assert state.interval[0] > 0.05


def test_two_images_instead_of_one_are_drift(served, requests):
    two = served[1](
        [s.image for s in samples("eval", 2)],
        "USER: <image> <image> Is there a square ? ASSISTANT:",
        return_tensors="pt",
    )
    reference = [RequestSize(144, 1, n) for n in (7, 8, 9, 10)] * 10
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, replace(WATCH, share=0.01), reference=reference)
        serve(monitor, [two] * 12)
    kinds = {alarm.kind for alarm in monitor.state.alarms}
    assert {"n_visual", "n_images"} <= kinds
    assert not handle.is_off


def calibrated_on(*sizes):
    return replace(MILD, provenance={"input_sizes": InputSizes.of(sizes).to_data()})


def test_requests_are_compared_with_what_the_plan_was_calibrated_on(served, requests, caplog):
    settings = replace(WATCH, share=0.01)
    with tpcal.apply(served[0], calibrated_on(*[RequestSize(288, 2, 10)] * 40)) as handle:
        monitor = Monitor(*served, handle, settings)
        serve(monitor, requests[-1:] * 8)  # without an image, so nothing to compare
        assert monitor.state.n_requests == 8
        assert monitor.state.alarms == ()
        serve(monitor, requests[:8])
        given = [RequestSize(144, 1, n) for n in (7, 8, 9, 10)] * 10
        explicit = Monitor(*served, handle, settings, reference=given)
        serve(explicit, requests[:8])
    told = {alarm.kind: alarm.message for alarm in monitor.state.alarms}
    assert {"n_visual", "n_images"} <= told.keys()
    assert told["n_images"].startswith("The images per request are not those that the plan was ")
    assert explicit.state.alarms == ()
    assert "holds no sizes" not in caplog.text


def test_a_plan_without_sizes_is_watched_and_the_log_says_what_to_do(served, requests, caplog):
    with tpcal.apply(served[0], MILD) as handle:
        Monitor(*served, handle, WATCH, reference=())
        assert not caplog.records
        monitor = Monitor(*served, handle, WATCH)
        serve(monitor, requests[:2])
    assert monitor.state.n_requests == 2
    assert "mild holds no sizes of the inputs" in caplog.text
    assert "the first 4 requests" in caplog.text
    assert "run `tpcal calibrate` and `tpcal plan` again. Or pass sizes" in caplog.text


def test_damaged_sizes_of_a_plan_are_refused(served):
    plan = replace(MILD, provenance={"input_sizes": {"n_visual": [[144, 1]]}})
    problem = pytest.raises(UsageError, match=r"mild: .*input_sizes.n_images must.*again with")
    with tpcal.apply(served[0], plan) as handle, problem:
        Monitor(*served, handle, WATCH)


def test_shadows_in_idle_time_from_several_threads_compare_every_request(served, requests):
    settings = replace(WATCH, shadowing="idle", max_waiting=40)
    with tpcal.apply(served[0], MILD) as handle:
        with Monitor(*served, handle, settings) as monitor, ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda r: monitor.generate(r, max_new_tokens=2), requests[:6]))
        state = monitor.state
    assert (state.n_requests, state.n_compared, state.n_dropped) == (6, 6, 0)


def test_errors_of_shadows_and_callbacks_do_not_reach_the_request(
    served, requests, monkeypatch, caplog
):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    with tpcal.apply(served[0], BLIND) as handle:
        monitor = Monitor(*served, handle, WATCH, on_alarm=fail)
        with monkeypatch.context() as patched, caplog.at_level(logging.CRITICAL):
            patched.setattr("tpcal.monitor.monitor.generate_ids", fail)
            serve(monitor, requests[:1])
        assert monitor.state.n_failed == 1
        serve(monitor, requests[:8])
        assert len(monitor.state.alarms) == 1
        with pytest.raises(RuntimeError, match="reshape"):  # a request that fails is not counted
            monitor.generate({**requests[0], "pixel_values": requests[0]["pixel_values"][:0]})
    assert monitor.state.n_requests == 9


def test_a_call_with_a_cache_or_a_bypass_is_not_answered_again(served, requests):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, WATCH)
        cache = DynamicCache(config=served[0].config)
        monitor.generate(requests[0], max_new_tokens=1, past_key_values=cache)
        with handle.bypassed():
            monitor.generate(requests[0], max_new_tokens=1)
        state = monitor.state
        assert (state.n_requests, state.n_unpruned, state.n_compared) == (1, 1, 0)
        with monitor.watching(requests[0]):
            served[0].generate(**requests[0], max_new_tokens=1)
        assert monitor.state.n_compared == 1


def test_the_share_of_requests_is_that_of_the_settings(served, requests):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, replace(WATCH, share=0.25))
        chosen = [monitor._is_chosen() for _ in range(4000)]
    assert 0.22 < sum(chosen) / len(chosen) < 0.28


def test_the_limit_comes_from_the_certificate(monkeypatch):
    with pytest.raises(UsageError, match="blind has no certificate.*MonitorSettings"):
        MonitorSettings().with_limit_of(BLIND)
    proven = Certificate(0.03, 0.95, 100, 0, 0.03, "exact binomial", "all samples")
    monkeypatch.setattr(Plan, "proven", property(lambda plan: proven))
    assert MonitorSettings().with_limit_of(BLIND).limit == 0.03
    assert MonitorSettings(limit=0.1).with_limit_of(BLIND).limit == 0.1


def test_answers_are_compared_up_to_the_length_of_the_certificate(monkeypatch):
    assert MonitorSettings(limit=0.1).with_limit_of(BLIND).max_new_tokens == 16
    proven = Certificate(
        0.03, 0.95, 100, 0, 0.03, "exact binomial", "all samples", max_new_tokens=64
    )
    monkeypatch.setattr(Plan, "proven", property(lambda plan: proven))
    assert MonitorSettings().with_limit_of(BLIND).max_new_tokens == 64
    assert MonitorSettings(limit=0.1).with_limit_of(BLIND).max_new_tokens == 64
    assert MonitorSettings(max_new_tokens=4).with_limit_of(BLIND).max_new_tokens == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"share": 0}, "share must be above 0"),
        ({"limit": 1.0}, "limit must be above 0"),
        ({"confidence": 1}, "confidence must be above 0"),
        ({"max_waiting": 0}, "max_waiting must be at least 1"),
        ({"n_reference": -1}, "n_reference must be at least 0"),
        ({"shadowing": "later"}, "shadowing must be idle or inline; got 'later'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        MonitorSettings(**setting)
