"""AuthVital's Pub/Sub channel: envelopes, a push subscription, and how Google proves who pushes.

AuthVital signs nothing here; see `docs/reference/provider.md`.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count
from typing import Any, Final

import jwt

from tenantsync.testing.delivery import Attempt, Delivery, iso, jsonb
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.outbox import Emission, Outbox, Which
from tenantsync.testing.people import Ids
from tenantsync.testing.server import Request, Response

__all__ = ["CERTS", "Google", "Message", "PubSub", "acknowledged"]

CERTS: Final = "/oauth2/v3/certs"
"""Where the emulator serves Google's keys, which are not among AuthVital's."""

_ISSUER: Final = "https://accounts.google.com"
_ACKNOWLEDGED: Final = frozenset({102, 200, 201, 202, 204})
_ROW_LATER: Final = 4  # milliseconds from the event to its row in AuthVital's outbox
_HOUR: Final = 3600
_ACCOUNT_NUMBER: Final = "113774264463038321964"
_FIRST_MESSAGE: Final = 9_130_613_088_091_680  # of the length that Google's have
_DELIVERIES: Final = 10  # after so many, AuthVital's own set-up gives a message up


def acknowledged(status: int | None) -> bool:
    """Whether Google takes this status for an acknowledgement; all else is delivered again."""
    return status in _ACKNOWLEDGED


@dataclass(frozen=True, slots=True)
class Message:
    """One event as Google keeps it: the same in every delivery.

    Args:
        id: Google's id, a number as text.
        published: When AuthVital published it, as text.
        envelope: AuthVital's envelope. Its `id` is neither the event's nor Google's.
        attributes: What a subscription may filter by.
        ordering_key: What keeps its order among messages of its kind, or None.
    """

    id: str
    published: str
    envelope: Mapping[str, Any] = field(repr=False)
    attributes: Mapping[str, str] = field(repr=False)
    ordering_key: str | None = None

    @property
    def data(self) -> bytes:
        """The bytes of the envelope."""
        return jsonb(self.envelope, ordered=False)

    def body(self, subscription: str, *, attempt: int | None = None) -> bytes:
        """Return the body of a push.

        Args:
            subscription: The subscription's full name.
            attempt: Which delivery it is; None where no dead-letter policy counts them.
        """
        message = {
            "attributes": dict(self.attributes),
            "data": base64.b64encode(self.data).decode(),
            "messageId": self.id,
            "message_id": self.id,
            "publishTime": self.published,
            "publish_time": self.published,
        }
        if self.ordering_key is not None:
            message["orderingKey"] = self.ordering_key
        push: dict[str, Any] = {"message": message, "subscription": subscription}
        if attempt is not None:
            push["deliveryAttempt"] = attempt
        return json.dumps(push).encode()


class Google:
    """Signs the bearer tokens of pushes, and serves the keys to check them with.

    Args:
        keys: The keys; None makes one when it is first needed. AuthVital's are others.
        clock: Unix seconds.

    Attributes:
        audience: The `aud` of tokens: what the subscription was made with.
        service_account: The address of the account that the subscription pushes as.
    """

    def __init__(self, keys: Keys | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.keys = keys or Keys(clock=clock)
        self.audience = "https://app.example.com/webhooks/authvital/pubsub"
        self.service_account = "push@authvital.iam.gserviceaccount.com"
        self._clock = clock

    def token(self, *, key: SigningKey | None = None, **changes: Any) -> str:
        """Return a token as Google makes it for a push.

        Args:
            key: What to sign with; None is the key that signs now.
            changes: Other values for claims; None takes a claim out.
        """
        now = int(self._clock())
        claims = {
            "aud": self.audience,
            "azp": _ACCOUNT_NUMBER,
            "email": self.service_account,
            "email_verified": True,
            "exp": now + _HOUR,
            "iat": now,
            "iss": _ISSUER,
            "sub": _ACCOUNT_NUMBER,
        } | changes
        key = key or self.keys.active
        told = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(told, key.private, "RS256", headers={"kid": key.kid})

    def serve(self, request: Request) -> Response:
        """Answer with the keys."""
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "Cache-Control": "public, max-age=21600, must-revalidate, no-transform",
        }
        return Response(200, json.dumps(self.keys.jwks()).encode(), headers)


Send = Callable[[Delivery, str, int], Attempt]
"""Sends a delivery to a URL once, as the attempt of this number."""


class PubSub:
    """The topic that AuthVital publishes to, and one push subscription to it.

    Which events reach the topic says `State.topic_events`; none do at first, as with AuthVital.

        authvital.state.topic_events = ("*",)
        authvital.actions.sign_up("ada@corp.test", application_id=app.id)
        authvital.pubsub.deliver_waiting("http://127.0.0.1:8000/webhooks/authvital/pubsub")

    Args:
        ids: Makes the ids of envelopes.
        google: Signs the tokens.
        send: Sends a delivery.
        clock: Unix seconds.
        sleep: Waits so many seconds between two deliveries.

    Attributes:
        topic: What waits to be published.
        subscription: The subscription's name.
        bearer: Whether pushes carry a token.
        ordered: Whether the subscription keeps the order within an ordering key: a message that is
            not acknowledged then holds back those behind it.
        dead_letter: Whether it has a dead-letter policy, which counts deliveries in the push.
        backoff: Seconds between two deliveries of a message; AuthVital's set-up has none.
    """

    def __init__(
        self,
        *,
        ids: Ids,
        google: Google,
        send: Send,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.topic = Outbox()
        self.google = google
        self.subscription = "projects/authvital/subscriptions/tenantsync"
        self.bearer = True
        self.ordered = True
        self.dead_letter = True
        self.backoff = 0.0
        self._ids = ids
        self._send = send
        self._clock = clock
        self._sleep = sleep
        self._numbers = count(_FIRST_MESSAGE)

    def publish(self, emission: Emission) -> Message:
        """Return the message that AuthVital makes of an event.

        Args:
            emission: From `topic`, or of the webhooks' outbox: then each call makes another row of
                it, with another id.
        """
        sync, event = emission.channel == "sync", emission.event
        happened = datetime.fromisoformat(event["timestamp"]).timestamp()
        # Of a system event, the application is in its data alone.
        tenant_id = event["tenant_id"] if sync else emission.data.get("tenant_id")
        envelope = {
            "id": emission.row or self._ids.cuid(),
            "source": "authvital",
            "event_type": emission.type,
            "event_source": "sync_event" if sync else "system_webhook",
            "timestamp": iso(round(happened * 1000) + _ROW_LATER),
            "tenant_id": tenant_id,
            "application_id": event["application_id"] if sync else None,
            "data": json.loads(jsonb(emission.data)),
        }
        attributes = {
            "event_type": emission.type,
            "event_source": envelope["event_source"],
            "tenant_id": tenant_id or "",
            "source": "authvital",
        }
        key = f"{tenant_id}:{event['application_id']}" if sync else tenant_id
        return Message(self._next(), iso(int(self._clock() * 1000)), envelope, attributes, key)

    def republish(self, message: Message) -> Message:
        """Return a message that AuthVital published twice: the same envelope, another of Google's.

        Several instances of its core do so, as nothing keeps one from publishing another's rows.
        """
        return replace(message, id=self._next(), published=iso(int(self._clock() * 1000)))

    def push(self, message: Message, *, attempt: int = 1, token: str | None = None) -> Delivery:
        """Return one delivery of a message.

        Args:
            message: What to deliver.
            attempt: Which delivery it is.
            token: A bearer token of your own; None makes one of Google's, as far as pushes carry
                any.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)",
        }
        if token is not None or self.bearer:
            headers["Authorization"] = f"Bearer {token or self.google.token()}"
        counted = attempt if self.dead_letter else None
        return Delivery(message.body(self.subscription, attempt=counted), headers)

    def deliver(self, message: Message, url: str, *, most: int = _DELIVERIES) -> list[Attempt]:
        """Push a message until it is acknowledged; return the attempts.

        Args:
            message: What to deliver.
            url: The receiver.
            most: How many deliveries there are; afterwards the message is dead.
        """
        return self._deliver([message], url, most)[0][1]

    def deliver_waiting(
        self, url: str, *, which: Which | None = None, most: int = _DELIVERIES
    ) -> list[tuple[Message, list[Attempt]]]:
        """Publish what waits in the topic, and push it until it is acknowledged.

        Args:
            url: The receiver.
            which: Chooses what to publish; the rest waits on. None publishes all.
            most: How many deliveries of one message there are.

        Returns:
            Each message with its attempts, in the order in which they were published.
        """
        return self._deliver([self.publish(one) for one in self.topic.take(which)], url, most)

    def _deliver(
        self, messages: list[Message], url: str, most: int
    ) -> list[tuple[Message, list[Attempt]]]:
        done: list[tuple[Message, list[Attempt]]] = [(message, []) for message in messages]
        left = done
        while left:
            left = self._round(left, url, most)
            if left and self.backoff:
                self._sleep(self.backoff)
        return done

    def _round(
        self, left: list[tuple[Message, list[Attempt]]], url: str, most: int
    ) -> list[tuple[Message, list[Attempt]]]:
        """Push each message once that nothing holds back; return what is left."""
        holding: set[str] = set()
        still = []
        for message, attempts in left:
            key = message.ordering_key if self.ordered else None
            if key not in holding:
                number = len(attempts) + 1
                attempts.append(self._send(self.push(message, attempt=number), url, number))
                if acknowledged(attempts[-1].status) or number >= most:
                    continue
            still.append((message, attempts))
            if key is not None:
                holding.add(key)
        return still

    def _next(self) -> str:
        return str(next(self._numbers))
