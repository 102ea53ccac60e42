"""Prometheus: an observer that counts deliveries, and gauges of the inbox, breakers and worker.

Needs the extra `metrics`. The registry is its own, so nothing is shared with the application's
metrics. No label holds an id, a type or a claim: the number of series does not grow with traffic.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from tenantsync.errors import ConfigError
from tenantsync.observe import Delivery

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "prometheus_client":
        raise
    _INSTALLED = False
else:
    _INSTALLED = True

__all__ = ["CONTENT_TYPE", "InboxTotals", "PrometheusObserver"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of what `PrometheusObserver.render` returns."""

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_MAX_REASONS: Final = 64  # as the counter of observe: a reason that varies must not fill the memory
_MAX_DOORS: Final = 16
_OTHER: Final = "other"
_FAILED: Final = "failed"
_NONE: Final = ""


class InboxTotals(Protocol):
    """What the gauges of the inbox show."""

    @property
    def parked(self) -> int:
        """Events that wait to be applied."""

    @property
    def quarantined(self) -> int:
        """Events that wait for an operator."""

    @property
    def unknown(self) -> int:
        """How many of both belong to tenants that nobody registered."""

    @property
    def bytes(self) -> int:
        """Size of the bodies of both."""

    @property
    def oldest(self) -> float | None:
        """Seconds that the oldest parked event has waited; None where none is parked."""

    @property
    def failing(self) -> int:
        """Tenants whose parked events could not be applied when last tried."""


class PrometheusObserver:
    """Counts deliveries, and shows them and the state of the inbox to Prometheus.

    What is read from elsewhere (`watch`) is asked for when somebody scrapes, and not more often
    than every few seconds. Where a source does not answer, its series are left out and
    `tenantsync_source_up` says 0: an old number that looks new is worse than none.

    Args:
        tenants: Whether to count deliveries by tenant as well, in a metric of its own. That is
            six series a tenant: leave it off for thousands.
        cached_for: Seconds that what a source said is taken for true.
        clock: Monotonic seconds.

    Raises:
        ConfigError: The extra `metrics` is not installed.
    """

    def __init__(
        self,
        *,
        tenants: bool = False,
        cached_for: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _INSTALLED:
            raise ConfigError('metrics need Prometheus\' client: pip install "tenantsync[metrics]"')
        self.registry = CollectorRegistry()
        """All of tenantsync's metrics and nothing else, for an exporter of your own."""
        self._deliveries = Counter(
            "tenantsync_deliveries_total",
            "Events by what became of them.",
            ("outcome", "reason", "door"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tenantsync_delivery_seconds",
            "Time from an event's arrival to its answer.",
            ("door",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._by_tenant = (
            Counter(
                "tenantsync_tenant_deliveries_total",
                "Events of known tenants by what became of them.",
                ("tenant", "outcome"),
                registry=self.registry,
            )
            if tenants
            else None
        )
        self._reasons = _Vocabulary(_MAX_REASONS)
        self._doors = _Vocabulary(_MAX_DOORS)
        self._sources = _Sources(cached_for, clock)
        self.registry.register(self._sources)

    def __call__(self, delivery: Delivery, /) -> None:
        """Count one delivery."""
        outcome = _FAILED if delivery.outcome is None else delivery.outcome.value
        reason = self._reasons.word(delivery.reason or delivery.error or _NONE)
        door = self._doors.word(delivery.door)
        self._deliveries.labels(outcome, reason, door).inc()
        self._seconds.labels(door).observe(delivery.seconds)
        if self._by_tenant is not None and delivery.tenant is not None:
            self._by_tenant.labels(delivery.tenant, outcome).inc()

    def watch(
        self,
        *,
        inbox: Callable[[], InboxTotals] | None = None,
        breakers_open: Callable[[], int] | None = None,
        worker: Callable[[], Mapping[str, int]] | None = None,
        drift: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        """Show what others know, from now on. May be called again, with what is known later.

        Args:
            inbox: Returns the totals of the inbox.
            breakers_open: Returns for how many places this process's circuit breaker is open.
            worker: Returns the worker's counters, which only grow, by a few fixed names.
            drift: Returns the counters of reconciliation, likewise: `DriftCounter.counts`.
        """
        if inbox is not None:
            totals = inbox
            self._sources.add("inbox", lambda: _inbox_metrics(totals()))
        if breakers_open is not None:
            opened = breakers_open
            self._sources.add("breakers", lambda: [_breaker_metric(opened())])
        if worker is not None:
            counts = worker
            self._sources.add("worker", lambda: [_worker_metric(counts())])
        if drift is not None:
            found = drift
            self._sources.add("drift", lambda: [_drift_metric(found())])

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, of the type `CONTENT_TYPE`.

        Blocking: the sources may ask the control database.
        """
        return generate_latest(self.registry)


class _Vocabulary:
    """Words that may be labels: the first few that were ever heard; later ones are "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._words: frozenset[str] = frozenset()

    def word(self, word: str) -> str:
        if word in self._words:  # replaced as a whole, so it is read without the lock
            return word
        with self._lock:
            if word not in self._words and len(self._words) >= self._most:
                return _OTHER
            self._words |= {word}
        return word


@dataclass(slots=True)
class _Source:
    """Something that is asked, and what it said last.

    Args:
        read: Asks.
        read_at: When it was last asked, or None.
        metrics: What it said; empty where it failed.
        up: Whether it answered.
    """

    read: Callable[[], "Iterable[Metric]"]
    read_at: float | None = None
    metrics: "list[Metric]" = field(default_factory=list)
    up: bool = False


class _Sources:
    """Collects from the sources when the registry is scraped."""

    def __init__(self, cached_for: float, clock: Callable[[], float]) -> None:
        self._cached_for = cached_for
        self._clock = clock
        # Held while sources are asked, so that two scrapes at once ask once.
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}

    def add(self, name: str, read: Callable[[], "Iterable[Metric]"]) -> None:
        with self._lock:
            self._sources[name] = _Source(read)

    def describe(self) -> "Iterable[Metric]":
        """Say nothing: registering must not ask a database for the names of its series."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Give what all sources say, and which of them answered."""
        up = GaugeMetricFamily(
            "tenantsync_source_up", "Whether what is shown could be asked for.", labels=("source",)
        )
        with self._lock:
            metrics = []
            for name, source in self._sources.items():
                self._ask(source)
                up.add_metric((name,), float(source.up))
                metrics += source.metrics
        yield up
        yield from metrics

    def _ask(self, source: _Source) -> None:
        now = self._clock()
        if source.read_at is not None and now - source.read_at < self._cached_for:
            return
        source.read_at = now
        try:
            source.metrics, source.up = list(source.read()), True
        except Exception:  # a scrape shows what can be shown, whatever a source raises
            source.metrics, source.up = [], False


def _inbox_metrics(totals: InboxTotals) -> "list[Metric]":
    return [
        _gauge("tenantsync_inbox_parked", "Events that wait to be applied.", totals.parked),
        _gauge(
            "tenantsync_inbox_quarantined",
            "Events that cannot be applied and wait for an operator.",
            totals.quarantined,
        ),
        _gauge(
            "tenantsync_inbox_unknown",
            "Events, of those that wait, of tenants that nobody registered.",
            totals.unknown,
        ),
        _gauge("tenantsync_inbox_bytes", "Bytes of the bodies that wait.", totals.bytes),
        _gauge(
            "tenantsync_inbox_oldest_seconds",
            "Time that the oldest parked event has waited; 0 where none is parked.",
            totals.oldest or 0.0,
        ),
        _gauge(
            "tenantsync_lanes_failing",
            "Tenants whose parked events could not be applied when last tried.",
            totals.failing,
        ),
    ]


def _breaker_metric(opened: int) -> "Metric":
    return _gauge(
        "tenantsync_breakers_open",
        "Places that this process leaves alone because they failed several times in a row.",
        opened,
    )


def _worker_metric(counts: Mapping[str, int]) -> "Metric":
    metric = CounterMetricFamily(
        "tenantsync_worker", "What this process's worker has done.", labels=("what",)
    )
    for what, count in counts.items():
        metric.add_metric((what,), count)
    return metric


def _drift_metric(counts: Mapping[str, int]) -> "Metric":
    metric = CounterMetricFamily(
        "tenantsync_reconcile",
        "What this process's comparisons with AuthVital's lists found: tenants and people.",
        labels=("what",),
    )
    for what, count in counts.items():
        metric.add_metric((what,), count)
    return metric


def _gauge(name: str, text: str, value: float) -> "Metric":
    return GaugeMetricFamily(name, text, value=value)
