"""When requests are answered again without the plan: while nothing else runs, or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Full, Queue
from threading import Condition, Thread

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
        self._jobs: Queue[Job | None] = Queue(max_waiting)
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
            if self._closed:
                return False
            if self._thread is None:
                self._thread = Thread(target=self._work, name="tpcal-monitor", daemon=True)
                self._thread.start()
        try:
            self._jobs.put_nowait(job)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Returns when the jobs that wait are done; later ones are dropped."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._change:
                self._change.wait_for(lambda: self._n_serving == 0 or self._closed)
            job()
