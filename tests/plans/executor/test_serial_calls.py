"""One model called from many threads: each call gives what it gives alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from threading import Event, Thread
from time import sleep

import pytest
import torch
from models import batch, prompt, tiny_llava
from tiny import case

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.trial import special_ids
from tpcal.plans.schema import Condition, Cut, Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")

TEXT = Plan((Cut(1, 0.5, "attention"), Cut(2, 0.25, "dart"), Cut(3, 0.0, condition=Condition(1))))
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


def test_500_mixed_requests_from_8_threads_are_answered_as_one_after_another(model):
    asked = [(step_by_step, inputs) for inputs in requests()]
    asked += [(generated, inputs) for inputs in requests()[:7]]
    alone = require_the_same(model, TEXT, asked, 500, 8)
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
def test_removing_waits_for_the_pass_and_calls_that_wait_go_on_as_the_model_then_is(
    model, following
):
    inputs, inside, go_on, results = batch([prompt(3, 0, 4)]), Event(), Event(), {}
    with torch.no_grad():
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
    threads += [Thread(target=change), Thread(target=call, args=["waiting"])]
    for thread in threads[1:]:
        thread.start()
        sleep(0.05)
    assert all(thread.is_alive() for thread in threads)
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    hook.remove()
    call("later")
    if following:
        results["next"].remove()
    assert torch.equal(results["running"], pruned)
    assert torch.equal(results["later"], afterwards)
    assert any(torch.equal(results["waiting"], logits) for logits in (pruned, afterwards))
    assert "forward" not in vars(model.model)


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
