"""The monitor of a plan in production: shadows a share of the requests and raises alarms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from threading import RLock
from types import TracebackType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.calibrate.evaluation.metrics import normalise
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.monitor.changed_share import CHANGED, SAME, limit_test, share_interval
from tpcal.monitor.input_drift import WORDS, InputDrift
from tpcal.monitor.monitor_settings import MonitorSettings
from tpcal.monitor.request_sizes import by_prompt, calibration_sizes, n_prompts, sizes_of
from tpcal.monitor.shadowing import InIdleTime, Inline
from tpcal.plans.executor import compat
from tpcal.plans.executor.handle import Handle
from tpcal.plans.executor.watched_calls import WatchedCall
from tpcal.plans.input_sizes import InputSizes, RequestSize
from tpcal.plans.plan_records import Plan

CHANGED_ANSWERS = "changed_answers"
KINDS = (CHANGED_ANSWERS, *WORDS)
"""The kinds of alarms: changed answers, and drift of each size of a request."""
_NO_SIZES = (
    "%s holds no sizes of the inputs that it was calibrated on, so drift is judged against the "
    "first %d requests. For a plan that holds them, run `tpcal calibrate` and `tpcal plan` again. "
    "Or pass sizes as Monitor(reference=...); () means the first requests, without this warning."
)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """Something that a monitor found out; each kind is raised once."""

    kind: str
    """One of `KINDS`."""
    message: str
    """One sentence for people."""


@dataclass(frozen=True)
class MonitorState:
    """What a monitor has seen so far. Requests are rows: a batch of four counts four times."""

    n_requests: int
    """Requests that were served with the plan; every turn of a conversation counts."""
    n_unpruned: int
    """Calls that were served without it, because it was switched off, bypassed or removed."""
    n_visual: int
    """Visual tokens of the requests together, before the first cut."""
    n_compared: int
    """Requests that were answered again and compared."""
    n_changed: int
    """Requests among them whose answer changed."""
    n_dropped: int
    """Calls that were chosen to be answered again but were not, as too many waited."""
    n_failed: int
    """Calls whose second answer ended in an error."""
    interval: tuple[float, float]
    """Lower and upper bound of the true share of changed answers; they hold at all times."""
    limit: float
    """Largest share of changed answers that was promised."""
    alarms: tuple[Alarm, ...]
    is_off: bool
    """Whether the plan is switched off."""


class Monitor:
    """Watches a plan that serves requests; threads may use it at the same time.

    Args:
        model: The model that the plan is applied to.
        processor: Its processor.
        handle: The handle of the plan.
        settings: What is watched; the defaults take the limit from the plan's certificate.
        reference: Sizes of requests like those that the plan was made for, or a summary of them.
            Drift is judged against them and the first requests. None takes the inputs that the
            plan was calibrated on, against which every request with images is tested; if the
            plan holds no such sizes, only the first requests are left, and a warning says so.
        on_alarm: Called with every alarm, in the thread that raises it.

    Raises:
        UsageError: No limit of changed answers is known, or the plan's sizes cannot be read.

    Example:
        >>> with tpcal.Monitor(model, processor, handle) as monitor:  # doctest: +SKIP
        ...     ids = monitor.generate(inputs, max_new_tokens=64)
        ...     monitor.state.interval
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        handle: Handle,
        settings: MonitorSettings | None = None,
        *,
        reference: Iterable[RequestSize] | InputSizes | None = None,
        on_alarm: Callable[[Alarm], None] | None = None,
    ) -> None:
        self.settings = settings = (settings or MonitorSettings()).with_limit_of(handle.plan)
        assert settings.limit is not None
        self._limit = settings.limit
        self._model, self._processor, self._handle = model, processor, handle
        self._on_alarm = on_alarm
        self._random = Random(settings.seed)
        level = 1 - settings.confidence
        self._test = limit_test(self._limit, level)
        n_first, calibrated = settings.n_reference, None
        if reference is None:
            calibrated = calibration_sizes(handle.plan)
            if calibrated is None:
                _LOG.warning(_NO_SIZES, handle.plan.name or "The plan", n_first)
        self._is_against_calibration = calibrated is not None
        if calibrated is not None:
            reference, n_first = calibrated, 0  # every request is tested, from the first on
        self._drift = InputDrift(reference or (), n_first, level, settings.seed)
        idle = settings.shadowing == "idle"
        self._shadows = InIdleTime(settings.max_waiting) if idle else Inline()
        self._lock = RLock()
        self._counts = dict.fromkeys(
            ("requests", "unpruned", "visual", "compared", "changed", "dropped", "failed"), 0
        )
        self._alarms: list[Alarm] = []

    @property
    def plan(self) -> Plan:
        """The plan that is watched."""
        return self._handle.plan

    def generate(self, inputs: Mapping[str, Tensor], **options: Any) -> Any:
        """What ``model.generate(**inputs, **options)`` gives, watched.

        Args:
            inputs: What the processor made of the prompts.
            options: Options of ``generate``. A call with a cache is not answered again.
        """
        with self.watching(inputs, shadowed=compat.given_cache({**inputs, **options}) is None):
            return self._model.generate(**inputs, **options)

    @contextmanager
    def watching(self, inputs: Mapping[str, Tensor], *, shadowed: bool = True) -> Iterator[None]:
        """A context around one call that answers ``inputs`` in this thread, however it is made.

        Nothing is noted of a call that ends in an error, and an error in noting it is logged.

        Args:
            inputs: What the processor made of the prompts.
            shadowed: Whether the call may be answered again. A call that continues a cache is not.
        """
        with self._shadows.serving(), self._handle.watching() as call:
            yield
        try:
            self._note(inputs, call, shadowed)
        except Exception:
            _LOG.warning("A request could not be noted.", exc_info=True)

    @property
    def state(self) -> MonitorState:
        """What was seen so far."""
        with self._lock:
            counts = {f"n_{name}": n for name, n in self._counts.items()}
            changed, compared = self._counts["changed"], self._counts["compared"]
            return MonitorState(
                **counts,
                interval=share_interval(changed, compared, self.settings.confidence),
                limit=self._limit,
                alarms=tuple(self._alarms),
                is_off=self._handle.is_off,
            )

    def close(self) -> None:
        """Returns when the requests that wait are answered again; later ones are not."""
        self._shadows.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _note(self, inputs: Mapping[str, Tensor], call: WatchedCall, shadowed: bool) -> None:
        if not call.is_pruned:
            self._count(unpruned=1)
            return
        n, report = n_prompts(inputs), call.report
        visual = by_prompt(report.n_visual, n) if report is not None else ()
        self._count(requests=n, visual=sum(visual))
        if report is None or not call.begins:
            return  # the earlier turns are in the cache, so the call alone has no size
        sizes = sizes_of(inputs, report)
        self._test_drift(sizes)
        with_images = [row for row, n_visual in enumerate(visual) if n_visual]
        if with_images and shadowed and self._is_chosen():
            kept = dict(inputs)
            if not self._shadows.submit(lambda: self._shadow(kept, with_images)):
                self._count(dropped=1)

    def _is_chosen(self) -> bool:
        with self._lock:
            return self._random.random() < self.settings.share

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, n in more.items():
                self._counts[name] += n

    def _test_drift(self, sizes: list[RequestSize]) -> None:
        with self._lock:
            drifted = [name for size in sizes for name in self._drift.record(size)]
        for name in drifted:
            self._alarm(
                name,
                f"The {WORDS[name]} are {self._usual} (confidence {self.settings.confidence:g}).",
            )

    @property
    def _usual(self) -> str:
        if self._is_against_calibration:
            return "not those that the plan was calibrated on"
        return "no longer those of the first requests or the reference"

    def _shadow(self, inputs: Mapping[str, Tensor], rows: list[int]) -> None:
        """Answers a request with the plan and without it, and notes whether the answers differ."""
        # Both answers are greedy, of the length that certificates count, and normalised as there.
        # An error here must not reach the request, which has its answer.
        try:
            # In a copy of the context, so that `Handle.last` stays that of the request
            answers = copy_context().run(self._both_answers, inputs)
        except Exception:
            _LOG.warning("A request could not be answered again.", exc_info=True)
            self._count(failed=1)
            return
        if answers is not None:
            pruned, unpruned = answers
            self._compare([pruned[row] != unpruned[row] for row in rows])

    def _both_answers(self, inputs: Mapping[str, Tensor]) -> tuple[list[str], list[str]] | None:
        """The answers with the plan and without it; None if it was switched off meanwhile."""
        with self._handle.watching(is_shadow=True) as call:
            pruned = self._answers(inputs)
        if not call.is_pruned:
            return None
        with self._handle.bypassed():
            return pruned, self._answers(inputs)

    def _answers(self, inputs: Mapping[str, Tensor]) -> list[str]:
        n_new, tokenizer = self.settings.max_new_tokens, self._processor.tokenizer
        assert n_new is not None, "with_limit_of sets it"
        ids = generate_ids(self._model, self._processor, inputs, n_new)
        return [normalise(tokenizer.decode(row, skip_special_tokens=True)) for row in ids]

    def _compare(self, changed: list[bool]) -> None:
        with self._lock:
            self._count(compared=len(changed), changed=sum(changed))
            first = [self._test.add(CHANGED if one else SAME) for one in changed]
        if any(first):
            state = self.state
            self._alarm(
                CHANGED_ANSWERS,
                f"More than {self._limit:g} of the answers change: {state.n_changed} of "
                f"{state.n_compared} did (confidence {self.settings.confidence:g}).",
            )

    def _alarm(self, kind: str, message: str) -> None:
        if self.settings.switch_off:
            self._handle.off()
            message = f"{message} The plan was switched off."
        alarm = Alarm(kind, message)
        with self._lock:
            self._alarms.append(alarm)
        _LOG.warning("%s", message)
        if self._on_alarm is not None:
            try:
                self._on_alarm(alarm)
            except Exception:
                _LOG.exception("The callback of an alarm failed.")
