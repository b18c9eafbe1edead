"""Jobs run at once, or in idle time: bounded, one after another, and never beside a request."""

from __future__ import annotations

from threading import Event, current_thread

from tpcal.monitor.shadowing import InIdleTime, Inline

WAIT = 30


def test_an_inline_job_runs_in_the_thread_of_its_request():
    ran, shadows = [], Inline()
    with shadows.serving():
        assert shadows.submit(lambda: ran.append(current_thread()))
    shadows.close()
    assert ran == [current_thread()]


def test_a_job_waits_until_no_request_is_served():
    shadows, ran = InIdleTime(4), Event()
    with shadows.serving():
        with shadows.serving():
            assert shadows.submit(ran.set)
        assert not ran.wait(0.05)
    assert ran.wait(WAIT)
    shadows.close()


def test_a_job_may_close_a_full_queue():
    shadows, order, closed = InIdleTime(1), [], Event()

    def first():
        assert shadows.submit(lambda: order.append(2))
        shadows.close()
        order.append(1)
        closed.set()

    assert shadows.submit(first)
    assert closed.wait(WAIT)
    shadows.close()
    assert order == [1, 2]


def test_further_jobs_are_dropped_and_a_request_that_fails_is_over():
    shadows, order = InIdleTime(1), []
    started, go_on = Event(), Event()

    def first():
        started.set()
        assert go_on.wait(WAIT)
        order.append(1)

    assert shadows.submit(first)
    assert started.wait(WAIT)
    try:
        with shadows.serving():
            raise ValueError
    except ValueError:
        pass
    assert shadows.submit(lambda: order.append(2))
    assert not shadows.submit(lambda: order.append(3))
    go_on.set()
    shadows.close()
    shadows.close()
    assert order == [1, 2]
    assert not shadows.submit(lambda: order.append(4))
