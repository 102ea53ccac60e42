"""Prometheus: what is counted, what is shown, and what never becomes a label."""

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tenantsync import metrics
from tenantsync.errors import ConfigError
from tenantsync.metrics import PrometheusObserver
from tenantsync.observe import Delivery, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "monitor.md"


@dataclass(frozen=True)
class Totals:
    parked: int = 3
    quarantined: int = 1
    unknown: int = 1
    bytes: int = 4096
    oldest: float | None = 12.5
    failing: int = 2


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def delivery(outcome=Outcome.APPLIED, **fields):
    said = {
        "event_id": "event-canary",
        "event_type": "type-canary",
        "tenant": "acme",
        "seconds": 0.02,
        "door": "webhook",
    }
    return Delivery(outcome=outcome, **(said | fields))


def samples(observer):
    """Everything that is shown, as name and labels to value; without the times of creation."""
    families = text_string_to_metric_families(observer.render().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def count(observer, outcome, reason="", door="webhook"):
    labels = [("door", door), ("outcome", outcome), ("reason", reason)]
    return samples(observer).get(("tenantsync_deliveries_total", *labels), 0)


def test_deliveries_are_counted_by_outcome_reason_and_door():
    """Each delivery is one more, under what became of it; an error stands in for a reason."""
    observer = PrometheusObserver()
    for seen in (
        delivery(),
        delivery(),
        delivery(door="pubsub"),
        delivery(Outcome.IGNORED, reason="other_application"),
        delivery(None, error="TenantUnavailable"),
        delivery(None, error="Untrusted", reason="rejected"),
    ):
        observer(seen)

    assert [
        count(observer, "applied"),
        count(observer, "applied", door="pubsub"),
        count(observer, "ignored", "other_application"),
        count(observer, "failed", "TenantUnavailable"),
        count(observer, "failed", "rejected"),
    ] == [2, 1, 1, 1, 1]


def test_the_time_of_deliveries_is_a_histogram():
    """How long deliveries took falls into buckets, by door."""
    observer = PrometheusObserver()
    for seconds in (0.002, 0.02, 3.0):
        observer(delivery(seconds=seconds))

    shown = samples(observer)
    name, door = "tenantsync_delivery_seconds", ("door", "webhook")
    assert [shown[f"{name}_bucket", door, ("le", le)] for le in ("0.001", "0.025", "5.0")] == [
        0,
        2,
        3,
    ]
    assert (shown[f"{name}_count", door], shown[f"{name}_sum", door]) == (3, 3.022)


def test_nothing_of_an_event_becomes_a_label():
    """Neither id, type nor tenant is shown."""
    observer = PrometheusObserver()
    observer(delivery())

    text = observer.render().decode()
    assert [word for word in ("canary", "acme") if word in text] == []


def test_tenants_are_labels_where_somebody_wants_them():
    """The option counts by tenant too, in a metric of its own; who has no tenant is left out."""
    observer = PrometheusObserver(tenants=True)
    for seen in (delivery(), delivery(), delivery(None, error="Untrusted", tenant=None)):
        observer(seen)

    labels = [("outcome", "applied"), ("tenant", "acme")]
    shown = {
        key: value
        for key, value in samples(observer).items()
        if key[0] == "tenantsync_tenant_deliveries_total"
    }
    assert shown == {("tenantsync_tenant_deliveries_total", *labels): 2}


def test_words_that_vary_do_not_fill_the_memory():
    """Beyond 64 reasons and 16 doors, further ones are counted as other ones."""
    observer = PrometheusObserver()
    for number in range(100):
        observer(delivery(Outcome.IGNORED, reason=f"reason {number}"))
        observer(delivery(reason="reason 1", door=f"door {number}"))

    series = [key for key in samples(observer) if key[0] == "tenantsync_deliveries_total"]
    assert {dict(key[1:])["reason"] for key in series} >= {"reason 63", "other"}
    assert len({dict(key[1:])["reason"] for key in series}) == 65
    assert len({dict(key[1:])["door"] for key in series}) == 17
    assert count(observer, "ignored", "other") == 36


def test_a_word_that_was_heard_keeps_its_name():
    """A full vocabulary changes nothing for the words in it."""
    observer = PrometheusObserver()
    for number in [*range(100), 0]:
        observer(delivery(Outcome.IGNORED, reason=f"reason {number}"))

    assert count(observer, "ignored", "reason 0") == 2


def test_counting_from_many_threads_loses_nothing():
    """Several threads count at once, also the very first delivery."""
    observer = PrometheusObserver(tenants=True)
    told = [delivery(reason=f"r{number % 8}") for number in range(4_000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(observer, told))

    assert [count(observer, "applied", f"r{number}") for number in range(8)] == [500] * 8


def test_what_others_know_is_shown():
    """The inbox, its lanes, the breakers and the worker are shown beside the deliveries."""
    observer = PrometheusObserver()
    observer.watch(
        inbox=Totals,
        breakers_open=lambda: 5,
        worker=lambda: {"applied": 7, "quarantined": 1},
    )

    shown = samples(observer)
    assert {key: value for key, value in shown.items() if key[0] != "tenantsync_source_up"} == {
        ("tenantsync_inbox_parked",): 3,
        ("tenantsync_inbox_quarantined",): 1,
        ("tenantsync_inbox_unknown",): 1,
        ("tenantsync_inbox_bytes",): 4096,
        ("tenantsync_inbox_oldest_seconds",): 12.5,
        ("tenantsync_lanes_failing",): 2,
        ("tenantsync_breakers_open",): 5,
        ("tenantsync_worker_total", ("what", "applied")): 7,
        ("tenantsync_worker_total", ("what", "quarantined")): 1,
    }
    assert [
        shown["tenantsync_source_up", ("source", source)]
        for source in ("inbox", "breakers", "worker")
    ] == [1, 1, 1]


def test_an_empty_inbox_has_no_oldest_event():
    """Where nothing is parked, its age is nought."""
    observer = PrometheusObserver()
    observer.watch(inbox=lambda: Totals(parked=0, oldest=None))

    assert samples(observer)["tenantsync_inbox_oldest_seconds",] == 0


def test_a_source_is_asked_once_in_a_while():
    """Scrapes in quick succession cost the control database one question."""
    clock = Clock()
    asked = []
    observer = PrometheusObserver(cached_for=5.0, clock=clock)
    observer.watch(breakers_open=lambda: asked.append(clock.now) or len(asked))

    seen = []
    for now in (0.0, 4.9, 5.0, 9.9, 10.1):
        clock.now = now
        seen.append(samples(observer)["tenantsync_breakers_open",])
    assert (seen, asked) == ([1, 1, 2, 2, 3], [0.0, 5.0, 10.1])


def test_a_source_that_fails_is_left_out_and_the_others_are_shown():
    """No old number looks like a new one, and an alarm can be set on the source itself."""
    clock = Clock()
    healthy = True

    def totals():
        if not healthy:
            raise OSError("postgresql://app:hunter2@db/main is gone")
        return Totals()

    observer = PrometheusObserver(cached_for=5.0, clock=clock)
    observer.watch(inbox=totals, breakers_open=lambda: 1)
    before = samples(observer)
    healthy, clock.now = False, 6.0
    failing = samples(observer)
    text = observer.render().decode()
    healthy, clock.now = True, 12.0
    after = samples(observer)

    parked, up = ("tenantsync_inbox_parked",), ("tenantsync_source_up", ("source", "inbox"))
    assert [(shown.get(parked), shown[up]) for shown in (before, failing, after)] == [
        (3, 1),
        (None, 0),
        (3, 1),
    ]
    assert failing["tenantsync_breakers_open",] == 1
    assert "hunter2" not in text


def test_a_source_is_not_asked_when_it_is_named():
    """Wiring opens nothing: the first scrape asks."""
    asked = []
    PrometheusObserver().watch(inbox=lambda: asked.append(1) or Totals())

    assert asked == []


def test_nothing_is_shared_between_observers():
    """Two observers in one process have a registry each, and the global one stays empty of us."""
    first, second = PrometheusObserver(), PrometheusObserver()
    first(delivery())

    assert (count(first, "applied"), count(second, "applied")) == (1, 0)
    assert b"tenantsync" not in prometheus_client.generate_latest()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """The module can be imported without Prometheus' client; using it says what is missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("bare_metrics", metrics.__file__)
    bare = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bare_metrics", bare)
    spec.loader.exec_module(bare)

    with pytest.raises(ConfigError, match=r'pip install "tenantsync\[metrics\]"'):
        bare.PrometheusObserver()


def test_the_page_on_monitoring_names_every_metric_and_its_labels():
    """What the documentation lists is what is shown, no more and no less."""
    observer = PrometheusObserver(tenants=True)
    one = {"lanes": 1}
    observer.watch(inbox=Totals, breakers_open=int, worker=lambda: one, drift=lambda: one)
    observer(delivery())
    families = {
        family.name if family.type != "counter" else f"{family.name}_total": (
            family.type,
            sorted({name for sample in family.samples for name in sample.labels} - {"le"}),
        )
        for family in observer.registry.collect()
    }
    rows = re.findall(
        r"^\| `(tenantsync_\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE
    )

    assert {
        name: (kind, sorted(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    } == families
