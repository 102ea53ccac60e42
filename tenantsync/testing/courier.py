"""AuthVital as a test holds it: one call lets something happen there, and delivers it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from tenantsync.observe import Outcome
from tenantsync.testing.actions import Actions
from tenantsync.testing.chaos import Chaos
from tenantsync.testing.delivery import Delivery
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.outbox import Emission, Outbox, Which
from tenantsync.testing.people import Person, payload
from tenantsync.testing.state import State
from tenantsync.testing.tables import Membership
from tenantsync.testing.telling import role_keys
from tenantsync.testing.tokens import Tokens

__all__ = ["Answered", "AuthVital", "NotDelivered", "Ticking"]

_PATH: Final = "/webhooks/authvital"


class NotDelivered(AssertionError):
    """A delivery was answered with something else than a 2xx.

    Args:
        answered: The answer.
    """

    def __init__(self, answered: "Answered") -> None:
        super().__init__(
            f"{answered.type or 'the delivery'} was answered {answered.status}: "
            f"{dict(answered.body)}; look at authvital.answers for all that were sent, or use "
            "authvital.send where a refusal is what the test expects"
        )
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Answered:
    """One delivery, and what the endpoint said to it.

    Args:
        type: The event's type, as the headers have it; empty where there is none.
        delivery: What was sent.
        status: The HTTP status.
        body: The answer's JSON object; empty where it is none.
    """

    type: str
    delivery: Delivery
    status: int
    body: Mapping[str, str]

    @property
    def outcome(self) -> Outcome | None:
        """What became of the event; None where the answer does not say so."""
        word = self.body.get("outcome")
        return Outcome(word) if word in set(Outcome) else None


Post = Callable[[Delivery, bool], tuple[int, Mapping[str, str]]]
"""Hands a delivery over, of a system event where it says so; returns the status and the body."""


class Ticking:
    """A clock that never says the same millisecond twice: what happens later is newer.

    Actions read it once each, so that all which one of them tells is of one millisecond. It may be
    read by any thread.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the time in unix seconds, in whole milliseconds."""
        with self._lock:
            self._last = max(int(self._clock() * 1000), self._last + 1)
            # Half a millisecond more, so that whoever multiplies and cuts off finds it again.
            return (self._last + 0.5) / 1000


class AuthVital:
    """A running local AuthVital whose deliveries go to the application under test.

    Args:
        emulator: The emulator, running.
        application_id: The application whose webhook it is.
        tenants: AuthVital's tenant ids, by the tenant's key.
        post: Hands a delivery over.
        drain: Applies what waits in the application's inbox.
        chaos: What orders deliveries; None sends each one at once, and once.
    """

    def __init__(
        self,
        emulator: Emulator,
        *,
        application_id: str,
        tenants: Mapping[str, str],
        post: Post,
        drain: Callable[[], object] = lambda: None,
        chaos: "Chaos[tuple[bytes, Emission | None]] | None" = None,
    ) -> None:
        self.emulator = emulator
        self.application_id = application_id
        self.answers: list[Answered] = []
        """All deliveries so far with their answers, in the order in which they were sent."""
        self._tenants = tenants
        self._post = post
        self._drain = drain
        self._chaos = chaos

    @property
    def url(self) -> str:
        """The base URL: keys, tokens and the integration API are served there."""
        return self.emulator.url

    @property
    def state(self) -> State:
        """Who and what there is."""
        return self.emulator.state

    @property
    def actions(self) -> Actions:
        """What may happen, told as AuthVital tells it: see `deliver_waiting`."""
        return self.emulator.actions

    @property
    def outbox(self) -> Outbox:
        """What the actions told, and nobody took yet."""
        return self.emulator.outbox

    @property
    def tokens(self) -> Tokens:
        """Mints tokens, honest ones and look-alikes."""
        return self.emulator.tokens

    def tenant_id(self, tenant: str) -> str:
        """Return AuthVital's id of a tenant; what is no tenant's key is taken for an id."""
        return self._tenants.get(tenant, tenant)

    def access_token(self, sub: str, tenant: str, **claims: Any) -> str:
        """Mint the access token that a person's browser would send: see `Tokens.access`."""
        return self.tokens.access(sub, self.tenant_id(tenant), **claims)

    def deliver(
        self,
        type: str,
        *,
        tenant: str,
        sub: str | None = None,
        email: str | None = None,
        at: datetime | None = None,
        id: str | None = None,
        **data: object,
    ) -> Outcome | None:
        """Let an event of any of the nineteen sync types happen, and deliver it.

        Nobody checks that it makes sense: people may leave who never joined. For what AuthVital
        itself would tell, use `actions` and `deliver_waiting`.

        Args:
            type: The event type, such as `member.joined`.
            tenant: The tenant's key, or AuthVital's id of it.
            sub: The person; None makes it of the address, the same one each time. Of people whom
                the actions made, names, membership and roles are told as they are.
            email: The address; None makes one.
            at: When it happened; None is now, and later than all before it.
            id: The event's id; None makes a new one.
            data: Further keys of the payload, or other values than the made-up ones.

        Returns:
            What became of it; None where chaos keeps it back.

        Raises:
            NotDelivered: The endpoint answered with something else than a 2xx.
            ValueError: The type is not one of the nineteen.
            TypeError: Neither `sub` nor `email` was given.
        """
        tenant_id = self.tenant_id(tenant)
        body = self.emulator.event(
            type,
            tenant_id=tenant_id,
            application_id=self.application_id,
            data=self._payload(type, tenant_id, sub, email) | data,
            id=id,
            timestamp=None if at is None else round(at.astimezone(UTC).timestamp() * 1000),
        )
        return self._out(body, None)

    def deliver_body(self, body: bytes) -> Outcome | None:
        """Sign and deliver bytes of your own as a sync event; see `deliver`."""
        return self._out(body, None)

    def deliver_waiting(self, which: Which | None = None) -> list[Outcome | None]:
        """Deliver what the actions told, oldest first; see `deliver`.

        Args:
            which: Chooses what to deliver; the rest waits on. None delivers all.
        """
        taken = self.outbox.take(which)
        return [
            self._out(each.body(), each if each.channel == "system" else None) for each in taken
        ]

    def send(self, delivery: Delivery, *, system: bool = False) -> Answered:
        """Send a delivery once, exactly as it is and at once; the answer may be a refusal.

        Args:
            delivery: What to send: of `emulator.delivery`, or spoilt by `testing.wicked`.
            system: Whether it goes to the system webhook.
        """
        status, body = self._post(delivery, system)
        headers = delivery.headers
        event_type = headers.get("X-AuthVital-Event-Type") or headers.get("X-Webhook-Event") or ""
        answered = Answered(event_type, delivery, status, body)
        self.answers.append(answered)
        return answered

    def settle(self) -> None:
        """Deliver what chaos keeps back, and apply what the application parked.

        Looking into a tenant through `tenant_databases` does it by itself.

        Raises:
            NotDelivered: As `deliver`.
        """
        if self._chaos is not None:
            for body, emission in self._chaos.rest():
                self._sent(body, emission)
        self._drain()

    def send_to(self, target: ASGIApp | str, *, path: str = _PATH) -> None:
        """Send deliveries somewhere else from now on.

        Args:
            target: An ASGI application, which is called without a network; or the base URL of one
                that is served, to which they go over HTTP.
            path: Where its sync webhook is; the system webhook is at `system` beneath it.
        """
        if isinstance(target, str):
            self._post = _over_http(self.emulator, target.rstrip("/") + path)
        else:
            self._post = _into(target, path)

    def _out(self, body: bytes, emission: Emission | None) -> Outcome | None:
        if self._chaos is None:
            return self._sent(body, emission)
        outcome = None
        for each in self._chaos.send((body, emission)):
            became = self._sent(*each)
            if each[0] is body:
                outcome = became
        return outcome

    def _sent(self, body: bytes, emission: Emission | None) -> Outcome | None:
        # Signed when it is sent, as the provider signs each attempt anew.
        if emission is None:
            answered = self.send(self.emulator.delivery(body))
        else:
            answered = self.send(self.emulator.system_delivery(emission), system=True)
        if not 200 <= answered.status < 300:
            raise NotDelivered(answered)
        return answered.outcome

    def _payload(
        self, type: str, tenant_id: str, sub: str | None, email: str | None
    ) -> dict[str, Any]:
        if sub is None and email is None:
            raise TypeError("say whom the event is about: give sub, email, or both")
        made_up = Person.named(email or f"{sub}@example.test", sub=sub, tenant_id=tenant_id)
        with self.state.lock:
            known = self.state.users.get(made_up.sub)
            if known is None:
                return payload(type, made_up)
            person = replace(
                made_up,
                email=email or known.email,
                given_name=known.given_name,
                family_name=known.family_name,
            )
            membership = self.state.membership(tenant_id, known.id)
            if membership is not None:
                return self._as_member(type, person, membership)
            return payload(type, person)

    def _as_member(self, type: str, person: Person, membership: Membership) -> dict[str, Any]:
        application = self.state.applications[self.application_id]
        held = [
            application.roles[each] for each in membership.role_ids if each in application.roles
        ]
        # Who has no role gets this one with access.
        usual = [
            each for each in application.roles.values() if each.slug == application.default_role
        ]
        role = next(iter([*held, *usual]), None)
        data = payload(
            type,
            replace(
                person,
                membership_id=membership.id,
                tenant_roles=tuple(membership.tenant_roles),
                role="" if role is None else role.slug,
            ),
        )
        return data | {key: word for key, word in role_keys(role).items() if key in data}


def _into(application: ASGIApp, path: str) -> Post:
    # Not entered as a context: whether and when the application starts is the test's business.
    client = TestClient(application, follow_redirects=False)

    def post(delivery: Delivery, system: bool) -> tuple[int, Mapping[str, str]]:
        to = _beneath(path, system=system)
        answer = client.post(to, content=delivery.body, headers=dict(delivery.headers))
        return answer.status_code, _object(answer.content)

    return post


def _over_http(emulator: Emulator, url: str) -> Post:
    def post(delivery: Delivery, system: bool) -> tuple[int, Mapping[str, str]]:
        attempt = emulator.send(delivery, _beneath(url, system=system))
        if attempt.status is None:
            raise ConnectionError(f"{url} did not answer: {attempt.error}")
        return attempt.status, _object(attempt.answer.encode())

    return post


def _beneath(path: str, *, system: bool) -> str:
    return f"{path.removesuffix('/')}/system" if system else path


def _object(content: bytes) -> Mapping[str, str]:
    try:
        return msgspec.json.decode(content, type=dict[str, str])
    except msgspec.DecodeError:
        return {}
