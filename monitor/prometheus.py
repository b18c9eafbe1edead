"""Prometheus metrics of a monitor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tpcal import __version__
from tpcal.monitor.monitor import KINDS, Monitor, MonitorState
from tpcal.plans.extras import needs

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

COUNTERS = {
    "requests": "Requests served with the plan.",
    "unpruned": "Calls served without it: it was switched off, bypassed or removed.",
    "visual": "Visual tokens of the requests, before the first cut.",
    "compared": "Requests answered again without the plan and compared.",
    "changed": "Compared requests whose answer changed.",
    "dropped": "Calls that were to be answered again, but too many waited.",
    "failed": "Calls whose second answer ended in an error.",
}
"""Counter -> what it counts; its name is ``tpcal_NAME_total``."""


class MonitorCollector:
    """Gives Prometheus the state of a monitor, which is read when it is asked for.

    Args:
        monitor: The monitor.
        digest: The digest of its plan.
    """

    def __init__(self, monitor: Monitor, digest: str) -> None:
        self._monitor = monitor
        self._digest = digest

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily

        state = self._monitor.state
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"tpcal_{name}", about, value=getattr(state, f"n_{name}"))
        yield from _gauges(state)
        info = {"digest": self._digest, "version": __version__}
        yield InfoMetricFamily("tpcal_plan", "The plan and tpcal's version.", value=info)


def _gauges(state: MonitorState) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    lower, upper = state.interval
    yield GaugeMetricFamily("tpcal_changed_share_lower", "Lower bound of the share.", lower)
    yield GaugeMetricFamily("tpcal_changed_share_upper", "Upper bound of the share.", upper)
    yield GaugeMetricFamily("tpcal_changed_share_limit", "The promised limit.", state.limit)
    yield GaugeMetricFamily("tpcal_off", "1 if the plan is switched off.", float(state.is_off))
    alarms = GaugeMetricFamily("tpcal_alarm", "1 if there was such an alarm.", labels=["kind"])
    raised = {alarm.kind for alarm in state.alarms}
    for kind in KINDS:
        alarms.add_metric([kind], float(kind in raised))
    yield alarms


@needs("monitor")
def export_metrics(monitor: Monitor, registry: CollectorRegistry | None = None) -> None:
    """Registers the metrics of a monitor; every monitor of a process needs its own registry.

    Args:
        monitor: The monitor.
        registry: A registry of prometheus_client; None takes its default one.

    Raises:
        UsageError: prometheus_client is not installed.

    Example:
        >>> from tpcal.monitor.prometheus import export_metrics
        >>> export_metrics(monitor)  # doctest: +SKIP
    """
    from prometheus_client import REGISTRY

    collector = MonitorCollector(monitor, monitor.plan.digest)
    (registry or REGISTRY).register(collector)
