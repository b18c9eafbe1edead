"""The metrics of a monitor, as Prometheus reads them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tpcal.monitor.monitor import Alarm, MonitorState
from tpcal.monitor.prometheus import COUNTERS, export_metrics
from tpcal.plans.errors import UsageError
from tpcal.plans.extras import is_installed
from tpcal.plans.plan_records import Plan

STATE = MonitorState(
    n_requests=30,
    n_unpruned=2,
    n_visual=4320,
    n_compared=20,
    n_changed=3,
    n_dropped=1,
    n_failed=0,
    interval=(0.02, 0.4),
    limit=0.05,
    alarms=(Alarm("n_images", "More."),),
    is_off=True,
)
MONITOR = SimpleNamespace(state=STATE, plan=Plan())


@pytest.mark.skipif(
    not is_installed("prometheus_client"), reason="prometheus_client is not installed"
)
def test_the_state_is_read_when_it_is_asked_for():
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    export_metrics(MONITOR, registry)
    value = registry.get_sample_value
    assert {value(f"tpcal_{name}_total") for name in COUNTERS} == {30, 2, 4320, 20, 3, 1, 0}
    assert (value("tpcal_changed_share_lower"), value("tpcal_changed_share_upper")) == (0.02, 0.4)
    assert (value("tpcal_changed_share_limit"), value("tpcal_off")) == (0.05, 1)
    assert value("tpcal_alarm", {"kind": "n_images"}) == 1
    assert value("tpcal_alarm", {"kind": "changed_answers"}) == 0
    text = generate_latest(registry).decode()
    assert f'digest="{Plan().digest}"' in text


def test_without_prometheus_client_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("tpcal.plans.extras.is_installed", lambda module: False)
    with pytest.raises(UsageError, match=r"pip install 'tpcal\[monitor\]'"):
        export_metrics(MONITOR)
