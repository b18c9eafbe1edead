"""When requests are answered again without the plan: while nothing else runs, or at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread, current_thread

Job = Callable[[], None]


class Inline:
    """Runs each job at once, in the thread of its request, before the request returns."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A context around a request that is being served."""
        yield

    def submit(self, job: Job) -> bool:
        """Runs the job; always True."""
        job()
        return True

    def close(self) -> None:
        """Does nothing: no job waits."""


class InIdleTime:
    """Runs jobs one after another in a thread of its own, each when no request is being served.

    A request that comes while a job runs is served beside it.

    Args:
        max_waiting: Most jobs that wait; further ones are dropped. Each holds its request's
            inputs in memory.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._n_serving = 0
        self._change = Condition()
        self._closed = False
        self._thread: Thread | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A context around a request that is being served."""
        with self._change:
            self._n_serving += 1
        try:
            yield
        finally:
            with self._change:
                self._n_serving -= 1
                self._change.notify_all()

    def submit(self, job: Job) -> bool:
        """Lets the job wait for idle time; False if too many wait or the queue is closed."""
        with self._change:
            if self._closed or len(self._waiting) >= self._max_waiting:
                return False
            self._waiting.append(job)
            self._change.notify_all()
            if self._thread is None:
                self._thread = Thread(target=self._work, name="tpcal-monitor", daemon=True)
                self._thread.start()
        return True

    def close(self) -> None:
        """Returns when the jobs that wait are done; later ones are dropped.

        A job that calls it does not wait for itself: the others run after it.
        """
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(self._is_due)
                if not self._waiting:  # the queue is closed
                    return
                job = self._waiting.popleft()
            job()

    def _is_due(self) -> bool:
        return self._closed or (bool(self._waiting) and self._n_serving == 0)
