"""One model called from many threads: each call gives what it gives alone."""

from __future__ import annotations

import asyncio
import gc
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from functools import wraps
from threading import Barrier, Event, Thread
from time import sleep

import pytest
import torch
from models import batch, prompt, tiny_llava
from releases import require_encoded_images
from tiny import case

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import calls
from tpcal.plans.executor.handle import apply, is_applied
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.passes import ForwardPass
from tpcal.plans.executor.report import Report
from tpcal.plans.families import find
from tpcal.plans.laws.trial import special_ids
from tpcal.plans.plan_records import Condition, Cut, Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")

TEXT = Plan((Cut(1, 0.5, "attention"), Cut(2, 0.25, "dart"), Cut(3, 0.0, condition=Condition(1))))
CONTENT = Plan((Cut(1, 0.5, "grid"),))
VISION = Plan((Cut(0, 0.5, "vispruner"), Cut(2, 0.25, "visionzip")))
PROMPTS = [
    *([prompt(3, 0, 4)], [prompt(1, 0, 9)], [prompt(2, 0, 3, 0, 5)], [prompt(1, 0, 0, 6)]),
    *([prompt(7)], [prompt(12)]),
    [prompt(3, 0, 4), prompt(6), prompt(2, 0, 3, 0, 5)],
]
WAIT = 30  # seconds after which a lock counts as lost


@pytest.fixture(scope="module")
def model():
    return tiny_llava(n_layers=4)


def requests():
    """One image, several, none, padded batches, and four kinds that end in an error."""
    good = [batch(rows, seed=seed) for seed in range(3) for rows in PROMPTS]
    image = good[0]
    few = {**good[2], "pixel_values": good[2]["pixel_values"][:1]}
    small = {**image, "pixel_values": image["pixel_values"][..., :16, :16]}
    ends_visual = batch([prompt(3, 0)])
    misplaced = {**image, "position_ids": torch.arange(5)[None]}  # fails in a layer
    return [*good, few, small, ends_visual, misplaced]


def step_by_step(model, inputs):
    """Logits of a prefill and of a step on its cache."""
    with torch.no_grad():
        out = model(**inputs)
        n = inputs["attention_mask"].shape[1]
        mask = inputs["attention_mask"].new_ones(len(out.logits), 1)
        mask = torch.cat([inputs["attention_mask"], mask], dim=1)
        step = model(
            input_ids=torch.full((len(mask), 1), 30),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=out.past_key_values,
        )
    assert out.past_key_values.get_seq_length() == n + 1
    return torch.cat([out.logits, step.logits], dim=1)


def generated(model, inputs):
    """Logits of two tokens that `generate` makes."""
    made = model.generate(
        **inputs,
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        suppress_tokens=special_ids(model),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(made.logits)


def answered(way, model, inputs):
    """What the call gives, or the kind of its error."""
    try:
        return way(model, inputs)
    except (RuntimeError, ValueError, UsageError) as error:
        return type(error)


def require_the_same(model, plan, asked, n_calls, n_threads):
    """Calls in random order and many threads give what each gives alone, reports included."""

    def call(at):
        way, inputs = asked[at]
        given = answered(way, model, inputs)
        kept = [cut.kept for cut in handle.last.cuts] if torch.is_tensor(given) else None
        return given, kept

    order = [*range(len(asked)), *random.Random(0).choices(range(len(asked)), k=n_calls)]
    order = random.Random(1).sample(order, n_calls)
    with apply(model, plan) as handle:
        alone = [call(at) for at in range(len(asked))]
        with ThreadPoolExecutor(n_threads) as pool:
            together = list(pool.map(call, order))
    for at, (given, kept) in zip(order, together, strict=True):
        wanted, wanted_kept = alone[at]
        assert kept == wanted_kept
        if torch.is_tensor(wanted):
            torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
        else:
            assert given is wanted
    return alone


@pytest.mark.parametrize("n_requests", [100, pytest.param(500, marks=pytest.mark.nightly)])
def test_mixed_requests_from_8_threads_are_answered_as_one_after_another(model, n_requests):
    asked = [(step_by_step, inputs) for inputs in requests()]
    asked += [(generated, inputs) for inputs in requests()[:7]]
    alone = require_the_same(model, TEXT, asked, n_requests, 8)
    assert [given for given, _ in alone if isinstance(given, type)] == [
        *(ValueError, ValueError, UsageError, RuntimeError)
    ]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_images_encoded_in_many_threads_keep_what_was_read_of_them(name):
    one = case(name, "sdpa")
    asked = [(generated, row) for row in one.rows]
    asked += [(generated, one.batch(one.rows[:2]))]
    require_the_same(one.model, VISION, asked, 30, 6)


def test_features_of_one_thread_are_pruned_alike_in_another(model):
    require_encoded_images()
    inputs = batch([prompt(2, 0, 3, 0, 5)])
    with apply(model, VISION), ThreadPoolExecutor(1) as pool, torch.no_grad():
        wanted = model(**inputs).logits
        features = pool.submit(model.get_image_features, inputs.pop("pixel_values")).result()
        logits = model(**inputs, mm_encoder_outputs={"image": features}).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_the_last_report_is_that_of_the_own_thread(model):
    with apply(model, TEXT) as handle, ThreadPoolExecutor(1) as pool, torch.no_grad():
        model(**batch([prompt(3, 0, 4)]))
        mine = handle.last
        assert pool.submit(lambda: handle.last).result() is None
        theirs = pool.submit(lambda: (model(**batch([prompt(2, 0, 0, 5)])), handle.last)[1])
        assert theirs.result().n_visual == (32,)
        assert handle.last is mine
        assert mine.n_visual == (16,)


def interrupt(*args):
    raise KeyboardInterrupt


def fail(*args):
    raise ValueError


@pytest.mark.parametrize("stop", [fail, interrupt])
@pytest.mark.parametrize("part", ["base", "tower", "decoder", "layer", "first"])
def test_a_pass_that_breaks_off_lets_other_threads_go_on(model, part, stop):
    base, inputs = model.model, batch([prompt(3, 0, 4)])
    decoder = base.language_model
    modules = {"base": base, "tower": base.vision_tower, "decoder": decoder}
    module = modules.get(part, decoder.layers[2])
    if part == "first":  # a hook of the base that comes before everything
        module = base
    with apply(model, TEXT), ThreadPoolExecutor(1) as pool, torch.no_grad():
        wanted = model(**inputs).logits
        hook = module.register_forward_pre_hook(stop, prepend=part == "first")
        with pytest.raises((ValueError, KeyboardInterrupt)):
            model(**inputs)
        hook.remove()
        again = pool.submit(lambda: step_by_step(model, inputs)).result(WAIT)
        assert torch.equal(again[:, :-1], wanted)
        assert torch.equal(model(**inputs).logits, wanted)


def test_a_call_from_inside_a_pass_is_refused_and_the_pass_can_go_on(model):
    inputs, refused = batch([prompt(3, 0, 4)]), []

    def again(*args):
        try:
            model(**inputs)
        except UsageError as error:
            refused.append(str(error))

    with apply(model, TEXT), torch.no_grad():
        wanted = model(**inputs).logits
        hook = model.model.language_model.layers[2].register_forward_pre_hook(again)
        logits = model(**inputs).logits
        hook.remove()
    assert torch.equal(logits, wanted)
    assert [error[:52] for error in refused] == [
        "A model with a plan cannot be called from inside its"
    ]


@pytest.mark.parametrize("following", [None, Plan((Cut(1, 0.25, "grid"),))])
def test_removing_waits_for_the_pass_and_calls_that_begin_meanwhile_run_without_the_plan(
    model, following
):
    inputs, inside, go_on, results = batch([prompt(3, 0, 4)]), Event(), Event(), {}
    with torch.no_grad():
        unpruned = model(**inputs).logits
        with apply(model, TEXT):
            pruned = model(**inputs).logits
        with apply(model, following or Plan()):
            afterwards = model(**inputs).logits

    def hold(*args):
        if not inside.is_set():
            inside.set()
            assert go_on.wait(WAIT)

    def call(name):
        with torch.no_grad():
            results[name] = model(**inputs).logits

    def change():
        handle.remove()
        results["next"] = following and apply(model, following)

    handle = apply(model, TEXT)
    hook = model.model.language_model.layers[2].register_forward_pre_hook(hold)
    threads = [Thread(target=call, args=["running"])]
    threads[0].start()
    assert inside.wait(WAIT)
    threads.append(Thread(target=change))
    threads[1].start()
    while not handle._executor._passes._closed:
        sleep(0.01)
    call("meanwhile")
    assert is_applied(model)
    assert all(thread.is_alive() for thread in threads)
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    hook.remove()
    call("later")
    if following:
        results["next"].remove()
    assert torch.equal(results["running"], pruned)
    assert torch.equal(results["meanwhile"], unpruned)
    assert torch.equal(results["later"], afterwards)
    assert "forward" not in vars(model.model)


def test_a_plan_is_removed_from_inside_its_pass_when_the_pass_ends(model):
    inputs = batch([prompt(3, 0, 4)])
    with torch.no_grad():
        unpruned = model(**inputs).logits
        with apply(model, TEXT):
            pruned = model(**inputs).logits
        handle = apply(model, TEXT)
        layer = model.model.language_model.layers[2]
        hook = layer.register_forward_pre_hook(lambda *_: handle.remove())
        assert torch.equal(model(**inputs).logits, pruned)
        hook.remove()
        assert not is_applied(model)
        assert torch.equal(model(**inputs).logits, unpruned)


def test_passes_of_two_threads_run_at_the_same_time(model):
    requests = [batch([prompt(3, 0, 4)]), batch([prompt(2, 0, 3, 0, 5)])]
    met = Barrier(2)
    with apply(model, TEXT) as handle, torch.no_grad():
        wanted = [step_by_step(model, inputs) for inputs in requests]
        layers = model.model.language_model.layers

        def meet(*args):
            met.wait(WAIT)

        hooks = [layer.register_forward_hook(meet) for layer in layers]

        def call(inputs):
            with torch.no_grad():
                return step_by_step(model, inputs), handle.last.n_visual

        with ThreadPoolExecutor(2) as pool:  # they meet behind every layer
            got = list(pool.map(call, requests))
        for hook in hooks:
            hook.remove()
    for (logits, _), alone in zip(got, wanted, strict=True):
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    assert [n_visual for _, n_visual in got] == [(16,), (32,)]


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma4_shared", "llama4_tempered"])
def test_passes_meet_inside_the_attention_of_every_layer(name):
    """DeepStack, keys of earlier layers and temperatures belong to their own pass."""
    one, met = case(name, "sdpa"), Barrier(2)
    family = find(one.model)
    plan = Plan((Cut(1, 0.5, "attention"), Cut(family.cut_layers(one.model)[-1], 0.25, "grid")))

    def call(inputs):
        with torch.no_grad():
            return one.model(**family.numbered(inputs)).logits

    def meet(*args):
        met.wait(WAIT)

    with apply(one.model, plan):
        wanted = [call(row) for row in one.rows[:2]]
        layers = family.layers(one.model)
        hooks = [family.attention(a).q_proj.register_forward_pre_hook(meet) for a in layers]
        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(call, one.rows[:2]))
        for hook in hooks:
            hook.remove()
    for logits, alone in zip(got, wanted, strict=True):
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)


def test_a_prefill_keeps_its_hooks_while_another_thread_decodes(model):
    """A step of equal rows removes the hooks, unless another pass needs them."""
    inputs, short = batch([prompt(3, 0, 4)]), {"input_ids": torch.tensor([[9]])}
    with apply(model, TEXT), ThreadPoolExecutor(1) as pool, torch.no_grad():
        wanted = model(**inputs).logits
        layer = model.model.language_model.layers[1]
        steps = [lambda: pool.submit(model, **short).result(WAIT)]

        def step(*args):
            if steps:
                steps.pop()()

        hook = layer.register_forward_pre_hook(step)
        assert torch.equal(model(**inputs).logits, wanted)
        hook.remove()
    assert not steps


def test_asyncio_threads_and_tasks_have_reports_of_their_own(model):
    one, two = batch([prompt(3, 0, 4)]), batch([prompt(2, 0, 3, 0, 5)])
    told = []

    def answer(inputs):
        with torch.no_grad():
            return generated(model, inputs), handle.last.n_visual

    async def task(inputs, n_visual):
        generated(model, inputs)
        await asyncio.sleep(0)
        assert handle.last.n_visual == n_visual
        return await asyncio.to_thread(answer, inputs)

    async def serve():
        return await asyncio.gather(task(one, (16,)), task(two, (32,)))

    with apply(model, TEXT, on_report=lambda report: told.append(report.n_visual)) as handle:
        wanted = [generated(model, inputs) for inputs in (one, two)]
        told.clear()
        got = asyncio.run(serve())
    for (logits, _), alone in zip(got, wanted, strict=True):
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    assert [n_visual for _, n_visual in got] == [(16,), (32,)]
    assert sorted(told) == [(16,), (16,), (32,), (32,)]


def test_reports_are_told_in_the_context_of_their_request(model):
    request, told = ContextVar("request"), {}
    asked = [batch([prompt(3, 0, 4)]), batch([prompt(7)]), batch([prompt(2, 0, 0, 5)])]

    def call(name):
        request.set(name)
        generated(model, asked[name])

    def tell(report):
        told.setdefault(request.get(), []).append(report.n_visual)

    with apply(model, TEXT, on_report=tell), ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(3)))
    assert told == {0: [(16,)], 1: [(0,)], 2: [(32,)]}


def test_a_report_may_remove_the_plan(model):
    inputs, handles = batch([prompt(3, 0, 4)]), []
    with torch.no_grad():
        unpruned = model(**inputs).logits
        handles.append(apply(model, TEXT, on_report=lambda report: handles[0].remove()))
        assert not torch.equal(model(**inputs).logits, unpruned)
        assert not is_applied(model)
        assert torch.equal(model(**inputs).logits, unpruned)


def test_a_bypass_is_that_of_its_thread_and_of_those_that_copy_its_context(model):
    inputs, told = batch([prompt(3, 0, 4)]), []
    with torch.no_grad():
        unpruned = step_by_step(model, inputs)
        with apply(model, TEXT, on_report=told.append) as handle, ThreadPoolExecutor(1) as pool:
            pruned = step_by_step(model, inputs)
            assert not torch.equal(pruned, unpruned)
            told.clear()
            with handle.bypassed():
                assert torch.equal(step_by_step(model, inputs), unpruned)
                copied = copy_context()
                there = pool.submit(copied.run, step_by_step, model, inputs).result(WAIT)
                assert not told
                other = pool.submit(step_by_step, model, inputs).result(WAIT)
            assert torch.equal(there, unpruned)
            torch.testing.assert_close(other, pruned, rtol=0, atol=1e-5)
            assert torch.equal(step_by_step(model, inputs), pruned)


def test_a_pruned_conversation_goes_on_in_a_bypass(model):
    """The rows keep different numbers of tokens, so masks must still be gathered."""
    inputs, more = batch([prompt(3, 0, 4), prompt(2, 0, 0, 5)]), torch.full((2, 3), 30)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 3, dtype=torch.long)], dim=1)
    turn = {"input_ids": more, "attention_mask": mask}
    turn["position_ids"] = (mask.cumsum(1) - 1)[:, -3:]
    found = []
    for bypassed in (False, True):
        with apply(model, CONTENT) as handle, torch.no_grad():
            cache = model(**inputs).past_key_values
            with handle.bypassed() if bypassed else nullcontext():
                found.append(model(**turn, past_key_values=cache).logits)
    assert torch.equal(*found)


def test_killed_passes_leave_nothing_behind(model):
    inputs = batch([prompt(3, 0, 4)])
    attention = model.model.language_model.layers[0].self_attn
    with apply(model, TEXT) as handle, torch.no_grad():
        for stop in (fail, interrupt):
            hook = attention.o_proj.register_forward_pre_hook(stop)  # after its probe has read
            with pytest.raises((ValueError, KeyboardInterrupt)):
                model(**inputs)
            hook.remove()
            assert calls.INNERMOST.get() is None
            assert not handle._executor._passes._running
            assert not handle._executor._hooks._needing
            assert all(probe.take() is None for probe in handle._executor._probes.values())


def test_memory_is_flat(model):
    asked = requests()

    def call(at):
        answered(step_by_step, model, asked[at % len(asked)])

    def alive():
        gc.collect()
        kinds = (torch.Tensor, calls.Call, ForwardPass, Report, Held)
        return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())

    counts = []
    with apply(model, TEXT):
        for _ in range(3):
            with ThreadPoolExecutor(4) as pool:
                assert len([None for _ in pool.map(call, range(25))]) == 25
            counts.append(alive())
    assert counts[1] == counts[2]


def test_a_forward_that_was_wrapped_while_a_plan_was_applied_stays_so(model):
    base, inputs, calls = model.model, batch([prompt(3, 0, 4)]), []
    with torch.no_grad():
        unpruned = model(**inputs).logits
        handle = apply(model, TEXT)
        inner = base.forward

        @wraps(inner)
        def outer(*args, **kwargs):
            calls.append(1)
            return inner(*args, **kwargs)

        base.forward = outer
        try:
            assert not torch.equal(model(**inputs).logits, unpruned)
            handle.remove()
            assert torch.equal(model(**inputs).logits, unpruned)
            assert len(calls) == 2
        finally:
            del base.forward
