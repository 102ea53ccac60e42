"""Nothing personal leaves by a log, a metric, an error, a trace or an answer, whatever happens."""

import base64
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from chaos.house import APPLICATION
from guarding import ask
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tenantsync import TenantSync
from tenantsync.control.inbox import State
from tenantsync.events import Event
from tenantsync.testing.delivery import Delivery, sign_system
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.people import SYNC_TYPES, Person, payload
from tenantsync.testing.wicked import WICKED
from tenantsync.tracing import TracingObserver

WORD = "c4n4ry"  # not in the path of the files that the test makes
_numbers = itertools.count(1)

REFUSE_POSTGRESQL = (
    "ALTER TABLE {s}av_identities ADD CONSTRAINT refuse CHECK (nickname NOT LIKE '%refused%')"
)
REFUSE_SQLITE = """
CREATE TRIGGER refuse BEFORE INSERT ON av_identities WHEN new.nickname LIKE '%refused%'
BEGIN SELECT RAISE(ABORT, 'the application says no'); END
"""


class Sink(logging.Handler):
    """Keeps all that is logged: the message, the traceback, and every attribute of the record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        attributes = {name: value for name, value in vars(record).items() if name != "exc_info"}
        self.lines.append(f"{logging.Formatter().format(record)} {attributes!r}")


@pytest.fixture
def sink() -> Iterator[Sink]:
    """Give what hears tenantsync at DEBUG and everybody else at INFO."""
    made, root, ours = Sink(), logging.getLogger(), logging.getLogger("tenantsync")
    levels = root.level, ours.level
    root.addHandler(made)
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(made)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def canary(name: str) -> str:
    """Return a text that is nowhere else."""
    return f"{WORD}-{name}-{next(_numbers)}"


def canaries(kind: str, **more: object) -> dict[str, object]:
    """Return a payload whose every text is a canary."""
    person = Person(canary("sub"), f"{canary('email')}@example.test", "x", "x")
    plain = payload(kind, person) if kind in SYNC_TYPES else {"sub": person.sub}
    data = {
        name: [canary(name)] if isinstance(value, list) else canary(name)
        for name, value in plain.items()
    }
    claims = ("nickname", "picture", "phone_number", "birthdate", "website", "made_up")
    data |= {name: canary(name) for name in claims}
    data |= {"groups": [canary("group")], "nested": {canary("key"): canary("value")}}
    if "email" in plain:
        data["email"] = person.email
    return data | more


class Stage:
    """A TenantSync with every sink, and what came out of it.

    Args:
        sync: The TenantSync.
        authvital: Signs.
        tenant_id: Whose events they are.
    """

    def __init__(self, sync: TenantSync, authvital: Emulator, tenant_id: str) -> None:
        self.sync = sync
        self.authvital = authvital
        self.tenant_id = tenant_id
        self.answers: list[str] = []

    def body(self, kind: str, **options: object) -> bytes:
        """Return the body of an event full of canaries."""
        data = options.pop("data", None) or canaries(kind)
        names = {"tenant_id": self.tenant_id, "application_id": APPLICATION} | options
        return self.authvital.event(kind, data=data, **names)

    def announce(self, kind: str, data: object, **more: object) -> tuple[int, str]:
        """Deliver at the door for system events, and return status and outcome (or error)."""
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        body = json.dumps({"event": kind, "timestamp": timestamp, "data": data} | more).encode()
        delivery = sign_system(
            body, self.authvital.keys.active, event_type=kind, timestamp=timestamp
        )
        status, answer = self.sync.system_webhook.handle_blocking(body, delivery.headers)
        self.answers.append(json.dumps(dict(answer)))
        return status, answer.get("outcome") or answer["error"]

    def push(self, envelope: object, **claims: object) -> int:
        """Deliver at the door for Pub/Sub, and return the status."""
        google = self.authvital.pubsub.google
        data = base64.b64encode(json.dumps(envelope).encode()).decode()
        message = {
            "data": data,
            "messageId": "1",
            "attributes": {"event_type": canary("attribute")},
        }
        status, answer = self.sync.pubsub.handle_blocking(
            json.dumps({"message": message, "subscription": canary("subscription")}).encode(),
            {"Authorization": f"Bearer {google.token(**claims)}"},
        )
        self.answers.append(json.dumps(dict(answer)))
        return status

    def send(self, delivery: Delivery | bytes) -> tuple[int, str]:
        """Deliver, and return status and outcome (or error)."""
        if isinstance(delivery, bytes):
            delivery = self.authvital.delivery(delivery)
        status, answer = self.sync.webhook.handle_blocking(delivery.body, delivery.headers)
        self.answers.append(json.dumps(dict(answer)))
        return status, answer.get("outcome") or answer["error"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_canary_flies(kind, build, sink, authvital):
    """All outcomes and errors are met, and no value of any payload is in any sink."""
    google = authvital.pubsub.google
    pubsub = {
        "audience": google.audience,
        "service_account": google.service_account,
        "jwks_url": authvital.certs_url,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in pubsub.items()]
    house = build(kind, ["acme"], more="\n".join(["[pubsub]", *lines]))
    (tenant,) = house.tenants.values()
    ask(tenant.placement, REFUSE_POSTGRESQL if kind == "postgresql" else REFUSE_SQLITE)
    provider, spans = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    observers = [TracingObserver(tracer_provider=provider)]
    with TenantSync.from_toml(house.config, observers=observers) as sync:
        sync.on("member.activated")(_failing)
        stage = Stage(sync, authvital, tenant.id)

        for event_type in SYNC_TYPES:
            body = stage.body(event_type)
            expected = "parked" if event_type == "member.activated" else "applied"
            ignored = event_type.split(".")[0] in ("invite", "license")
            assert stage.send(body)[1] == ("ignored" if ignored else expected)
            again = "ignored" if ignored else "duplicate" if expected == "applied" else "parked"
            assert stage.send(body)[1] == again
        assert stage.send(stage.body("member.left", tenant_id="nobody"))[0] == 202
        refused = canaries("member.joined", nickname=canary("refused"))
        assert stage.send(stage.body("member.joined", data=refused)) == (202, "parked")
        for malformed in _malformed(stage):
            assert stage.send(malformed) == (202, "parked")
        for name, spoil in WICKED.items():
            if name == "revoked-key":
                continue  # the emulator's key is every test's
            for delivery in spoil(authvital, authvital.delivery(stage.body("member.joined"))):
                stage.send(delivery)
        assert stage.send(stage.body("member.joined", application_id="other"))[1] == "ignored"
        _announce_all(stage)
        _push_all(stage)
        worker = sync.worker()
        for _ in range(6):
            sync.inbox.retry(tenant_id=tenant.id, state=State.PARKED)
            worker.drain_now([tenant.id])
        states = {state for state, _ in house.entries().values()}
        assert "quarantined" in states
        metrics = (sync.metrics.render() if sync.metrics else b"").decode()

    inbox = ask(house.control, "SELECT reason, error, door, outcome, digest FROM {s}inbox")
    lanes = ask(house.control, "SELECT error FROM {s}lanes")
    said = {
        "log": "\n".join(sink.lines),
        "metrics": metrics,
        "trace": "\n".join(span.to_json() for span in spans.get_finished_spans()),
        "answers": "\n".join(stage.answers),
        "inbox": repr([*inbox, *lanes]),
    }
    assert all(said.values())
    assert "HookFailed" in said["log"]
    assert "EventRefused" in said["log"]
    for name, text in said.items():
        at = text.find(WORD)
        assert at < 0, f"{name}: ...{text[max(0, at - 200) : at + 200]}..."
    # They were there to be told: it is the sinks that are silent.
    assert WORD in repr(ask(tenant.placement, "SELECT * FROM {s}av_identities"))


def _announce_all(stage: Stage) -> None:
    """Meet all that may become of system events."""
    about: dict[str, object] = {name: canary(name) for name in ("name", "slug", "previous_name")}
    about |= {"owner_email": f"{canary('owner')}@example.test", "settings": {"x": canary("x")}}
    stranger = about | {"tenant_id": f"stranger-{stage.tenant_id}"}
    assert stage.announce("tenant.created", stranger) == (200, "ignored")
    assert stage.announce("tenant.updated", about | {"tenant_id": stage.tenant_id})[0] == 200
    access = {"tenant_id": stage.tenant_id, "application_id": APPLICATION, "role_name": canary("r")}
    for kind in ("tenant.app.granted", "tenant.app.revoked"):
        for sub in (canary("sub"), [canary("sub")]):
            told = about | access | {"user_id": sub, "access_type": "GRANTED"}
            assert stage.announce(kind, told)[0] in (200, 202)
    assert stage.announce("tenant.updated", canary("data"))[0] == 202
    assert stage.announce("tenant.made_up", about)[0] in (200, 202)
    assert stage.announce("tenant.deleted", stranger)[0] == 200


def _push_all(stage: Stage) -> None:
    """Meet all that may become of pushes."""
    names = {
        "tenant_id": stage.tenant_id,
        "application_id": APPLICATION,
        "source": canary("source"),
    }
    for kind in ("member.joined", "member.activated", "subject.deleted", "license.assigned"):
        event = json.loads(stage.body(kind))
        envelope = names | {"id": event["id"], "event_type": kind, "event_source": "sync_event"}
        envelope |= {"timestamp": event["timestamp"], "data": event["data"]}
        assert stage.push(envelope) == 204
        assert stage.push(envelope | {"tenant_id": "nobody"}) == 204
        assert stage.push(envelope | {"data": canary("data")}) == 204
        assert stage.push(envelope | {"event_source": canary("event_source")}) == 204
    assert stage.push([canary("list")]) == 204
    assert stage.push(names, email=f"{canary('account')}@example.test") == 403
    assert stage.push(names, iss=canary("issuer")) == 401
    assert stage.push(names, aud=canary("audience")) == 401


def _malformed(stage: Stage) -> Iterator[bytes]:
    """Give authentic bodies that are no events, with canaries wherever there is room."""
    event = json.loads(stage.body("member.joined"))
    spoilt: list[Callable[[], object]] = [
        lambda: event | {"timestamp": canary("timestamp")},
        lambda: event | {"data": canary("data")},
        lambda: event | {"data": {**event["data"], "sub": {canary("key"): canary("value")}}},
        lambda: event | {"data": {**event["data"], "email": [canary("email")]}},
        lambda: event | {"data": {**event["data"], "tenant_roles": canary("roles")}},
        lambda: event | {"type": [canary("type")]},
        lambda: event | {"tenant_id": {canary("key"): 1}},
        lambda: [canary("list")],
        lambda: canary("text"),
    ]
    for make in spoilt:
        yield json.dumps(make()).encode()
    yield json.dumps(event).encode() + canary("tail").encode()
    yield b"\xff" + canary("bytes").encode()


def _failing(event: Event, session: object) -> None:
    # What applications do: their errors repeat what they were given.
    raise ValueError(f"cannot greet {event!r}: {event.data}")
