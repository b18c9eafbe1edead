"""A monitor counts each call by what the plan did in it, not by an earlier or a second answer."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import replace
from time import monotonic, sleep

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

import tpcal
from tpcal.calibrate.embedded import FOLDER, samples
from tpcal.monitor.monitor import CHANGED_ANSWERS, Monitor
from tpcal.monitor.monitor_settings import MonitorSettings
from tpcal.plans.input_sizes import RequestSize
from tpcal.plans.plan_records import Cut, Plan

BLIND = Plan((Cut(0, 0.0),), name="blind")
MILD = Plan((Cut(6, 0.9, "grid"),), name="mild")
QUIET = MonitorSettings(share=1e-6, limit=0.05, shadowing="inline", n_reference=0)
INLINE = replace(QUIET, share=1)
GREEDY = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
USUAL = [RequestSize(144, 1, n) for n in (7, 8, 9, 10)] * 10


@pytest.fixture(scope="module")
def served():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(FOLDER)


def asked(served, some):
    texts = [f"USER: <image> {sample.question} ASSISTANT:" for sample in some]
    images = [sample.image for sample in some]
    made = served[1](images, texts, return_tensors="pt", padding=True, padding_side="left")
    return dict(made)


@pytest.fixture(scope="module")
def one(served):
    return asked(served, samples("eval", 1))


@pytest.fixture(scope="module")
def two(served):
    return asked(served, samples("eval", 2))


def later_turn(served, first, before, image=None):
    """Inputs of the turn after an answer, with a text alone or a text and an image."""
    text = f" USER: {'<image> ' if image else ''}What is it ? ASSISTANT:"
    new = dict(served[1](image, text, return_tensors="pt"))
    n_rows = len(before.sequences)
    ids = torch.cat([before.sequences, new.pop("input_ids").expand(n_rows, -1)], 1)
    mask = torch.ones_like(ids)
    mask[:, : first["attention_mask"].shape[1]] = first["attention_mask"]
    return {**new, "input_ids": ids, "attention_mask": mask}


def turn(monitor, inputs, cache=None):
    return monitor.generate(inputs, past_key_values=cache, **GREEDY)


def wait_until(is_done):
    end = monotonic() + 60
    while not is_done():
        assert monotonic() < end
        sleep(0.01)


def counts(monitor):
    state = monitor.state
    return state.n_requests, state.n_visual, state.n_unpruned


def test_a_text_turn_of_two_rows_after_another_request_is_answered_and_counted(served, one, two):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, QUIET, reference=USUAL)
        begun = turn(monitor, two)
        turn(monitor, one)
        assert counts(monitor) == (3, 3 * 144, 0)
        answer = turn(monitor, later_turn(served, two, begun), begun.past_key_values)
    assert len(answer.sequences) == 2
    assert counts(monitor) == (5, 3 * 144, 0)


def test_a_text_turn_is_not_counted_with_the_visual_tokens_before_it(served, one):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, INLINE, reference=USUAL)
        begun = turn(monitor, one)
        turn(monitor, later_turn(served, one, begun), begun.past_key_values)
    assert counts(monitor) == (2, 144, 0)


def test_later_turns_with_an_image_are_counted_and_are_no_drift(served):
    settings = replace(QUIET, switch_off=True)
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, settings, reference=USUAL)
        for sample in samples("eval", 12):
            first = asked(served, [sample])
            begun = turn(monitor, first)
            more = later_turn(served, first, begun, sample.image)
            turn(monitor, more, begun.past_key_values)
        assert not handle.is_off
    assert monitor.state.alarms == ()
    assert counts(monitor) == (24, 24 * 144, 0)


def test_a_conversation_that_began_unpruned_counts_as_unpruned_to_its_end(served, one):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, QUIET, reference=USUAL)
        handle.off()
        begun = turn(monitor, one)
        handle.on()
        turn(monitor, one)
        turn(monitor, later_turn(served, one, begun), begun.past_key_values)
    assert counts(monitor) == (1, 144, 2)


def test_calls_after_the_plan_was_removed_count_as_unpruned(served, one):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, QUIET, reference=USUAL)
        turn(monitor, one)
    turn(monitor, one)
    assert counts(monitor) == (1, 144, 1)


def test_a_request_that_waits_while_the_plan_is_removed_is_not_compared(served, one):
    settings = replace(INLINE, shadowing="idle")
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, settings, reference=USUAL)
        turn(monitor, one)
        wait_until(lambda: monitor.state.n_compared == 1)
        with monitor._shadows.serving():
            turn(monitor, one)
            handle.remove()
        monitor.close()
    assert counts(monitor) == (2, 2 * 144, 0)
    assert monitor.state.n_compared == 1


def test_an_error_in_noting_a_request_is_logged_and_leaves_the_answer(
    served, one, monkeypatch, caplog
):
    def fail(*args):
        raise RuntimeError("no such size")

    monkeypatch.setattr("tpcal.monitor.monitor.sizes_of", fail)
    with tpcal.apply(served[0], MILD) as handle, caplog.at_level(logging.WARNING):
        monitor = Monitor(*served, handle, QUIET, reference=USUAL)
        assert len(turn(monitor, one).sequences) == 1
    assert "A request could not be noted." in caplog.text


def test_a_cache_in_the_inputs_is_not_filled_by_a_second_answer(served, one):
    with tpcal.apply(served[0], MILD) as handle:
        monitor = Monitor(*served, handle, INLINE, reference=USUAL)
        cache = DynamicCache(config=served[0].config)
        monitor.generate({**one, "past_key_values": cache}, **GREEDY)
    assert counts(monitor) == (1, 144, 0)
    assert (monitor.state.n_compared, monitor.state.n_failed) == (0, 0)


@pytest.mark.parametrize("shadowing", ["idle", "inline"])
def test_second_answers_are_not_reported_and_every_one_is_compared(served, shadowing):
    request, told = ContextVar("request"), []
    settings = replace(INLINE, shadowing=shadowing, max_waiting=40)
    requests = [asked(served, [sample]) for sample in samples("eval", 12)]

    def note(report):
        told.append((request.get(), report.n_visual))  # a LookupError in any other context

    with tpcal.apply(served[0], BLIND, on_report=note) as handle:
        monitor = Monitor(*served, handle, settings, reference=USUAL)
        for name, inputs in enumerate(requests):
            request.set(name)
            turn(monitor, inputs)
        monitor.close()
    assert told == [(name, (144,)) for name in range(12)]
    assert (monitor.state.n_compared, monitor.state.n_failed) == (12, 0)
    assert [alarm.kind for alarm in monitor.state.alarms] == [CHANGED_ANSWERS]


def test_the_last_report_stays_that_of_the_request_after_a_second_answer(served, one):
    told = []
    with tpcal.apply(served[0], MILD, on_report=told.append) as handle:
        monitor = Monitor(*served, handle, INLINE, reference=USUAL)
        turn(monitor, one)
        assert monitor.state.n_compared == 1
        assert handle.last is told[0]
