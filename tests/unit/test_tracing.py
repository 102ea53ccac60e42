"""OpenTelemetry: one span per delivery, with nothing in it that names a person."""

import importlib.util
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tenantsync import tracing
from tenantsync.errors import ConfigError
from tenantsync.observe import Delivery, Outcome
from tenantsync.tracing import TracingObserver

NOW = 1_790_000_000_000_000_000


def delivery(outcome=Outcome.APPLIED, **fields):
    said = {
        "event_id": "event-canary",
        "event_type": "member.joined",
        "tenant": "acme",
        "seconds": 0.25,
        "door": "webhook",
    }
    return Delivery(outcome=outcome, **(said | fields))


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    yield made
    made.shutdown()


@pytest.fixture
def observer(provider):
    return TracingObserver(tracer_provider=provider, clock=lambda: NOW)


def test_a_delivery_is_a_span(observer, exporter):
    """The span has a stable name and says type, outcome, door and tenant."""
    observer(delivery())

    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == (
        "tenantsync.deliver",
        SpanKind.CONSUMER,
        StatusCode.UNSET,
    )
    assert dict(span.attributes) == {
        "tenantsync.type": "member.joined",
        "tenantsync.outcome": "applied",
        "tenantsync.door": "webhook",
        "tenantsync.tenant": "acme",
    }


def test_a_span_lasts_as_long_as_the_delivery(observer, exporter):
    """It is made afterwards, and begins when the event arrived."""
    observer(delivery(seconds=0.25))

    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (NOW - 250_000_000, NOW)


def test_no_id_is_in_a_span(observer, exporter):
    """Ids belong to the log; a span is for what many deliveries have in common."""
    observer(delivery())
    observer(delivery(None, error="Untrusted", reason="rejected"))

    assert [span for span in exporter.get_finished_spans() if "canary" in span.to_json()] == []


@pytest.mark.parametrize(
    ("told", "description", "attributes"),
    [
        (
            delivery(None, error="TenantUnavailable"),
            "TenantUnavailable",
            {"tenantsync.outcome": "failed", "error.type": "TenantUnavailable"},
        ),
        (
            delivery(Outcome.PARKED, error="HookFailed", reason="hook"),
            "HookFailed",
            {
                "tenantsync.outcome": "parked",
                "tenantsync.reason": "hook",
                "error.type": "HookFailed",
            },
        ),
        (delivery(None, reason="stopping"), "stopping", {"tenantsync.outcome": "failed"}),
    ],
)
def test_a_failure_is_an_error_by_its_class(observer, exporter, told, description, attributes):
    """The span of a delivery that failed has status ERROR; its text is the name of the error."""
    observer(told)

    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, description)
    assert attributes.items() <= dict(span.attributes).items()


def test_what_is_not_known_is_left_out(observer, exporter):
    """An unreadable delivery has neither type nor tenant."""
    observer(delivery(None, error="Untrusted", event_id="", event_type="", tenant=None))

    (span,) = exporter.get_finished_spans()
    assert {"tenantsync.type", "tenantsync.tenant", "tenantsync.reason"}.isdisjoint(span.attributes)


def test_a_span_hangs_below_the_request(provider, observer, exporter):
    """A web framework's span for the request is the parent."""
    with provider.get_tracer("web").start_as_current_span("POST") as request:
        observer(delivery())

    span = exporter.get_finished_spans()[0]
    assert span.parent.span_id == request.get_span_context().span_id


def test_without_a_provider_nothing_is_recorded():
    """OpenTelemetry's own default records nothing, and costs next to nothing."""
    assert TracingObserver()(delivery()) is None


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """The module can be imported without OpenTelemetry; using it says what is missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("bare_tracing", tracing.__file__)
    bare = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bare_tracing", bare)
    spec.loader.exec_module(bare)

    with pytest.raises(ConfigError, match=r'pip install "tenantsync\[tracing\]"'):
        bare.TracingObserver()
