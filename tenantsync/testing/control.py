"""Telling a running emulator what to deliver: `POST /_emulator/deliver`, and how to ask."""

import ipaddress
from typing import Any

import httpx2
import msgspec

from tenantsync.testing.delivery import TIMEOUT
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.people import SYNC_TYPES, Person, payload
from tenantsync.testing.server import Request, Response
from tenantsync.testing.wicked import WICKED

__all__ = [
    "DEFAULT_EMAIL",
    "PATH",
    "Answer",
    "EmulatorError",
    "Order",
    "Report",
    "ask",
    "carry_out",
    "control",
]

PATH = "/_emulator/deliver"

DEFAULT_EMAIL = "ada@example.test"
"""Whom an order is about that names nobody."""


class EmulatorError(Exception):
    """The emulator could not be asked, or refused; the message says what to do.

    Args:
        reason: A sentence.
        wrong: Whether the order itself was wrong, rather than the emulator out of reach.
    """

    def __init__(self, reason: str, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.wrong = wrong


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to deliver, once and without retries.

    Args:
        type: The event type: one of the nineteen, or any other text together with `data`.
        tenant_id: The tenant in which it happens.
        application_id: The application whose webhook it is.
        sub: The subject id; None derives it from the address.
        email: The person's address; None makes one of `sub`, or is `DEFAULT_EMAIL`.
        data: Payload keys beside, or in place of, those that the type has.
        wicked: A name of `wicked.WICKED`, or None for an honest delivery.
        to: The receiver's URL; None is the emulator's own target.
    """

    type: str
    tenant_id: str
    application_id: str
    sub: str | None = None
    email: str | None = None
    data: dict[str, Any] = {}
    wicked: str | None = None
    to: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one request met: a status and the answer's text, or an error."""

    status: int | None
    answer: str
    error: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order.

    Args:
        event_id: The id of the event.
        type: Its type.
        sub: Whom it is about, or None where its data names nobody.
        to: Where it went.
        answers: One for each request; two where the order said `duplicated` or `doubled`.
    """

    event_id: str
    type: str
    sub: str | None
    to: str
    answers: list[Answer]

    @property
    def ok(self) -> bool:
        """Whether every request met a 2xx."""
        return all(a.status is not None and 200 <= a.status < 300 for a in self.answers)


def control(emulator: Emulator, target: str) -> None:
    """Let an emulator take orders over HTTP, from this machine only.

    Args:
        emulator: The emulator.
        target: The receiver's URL for orders that name none.
    """

    def respond(request: Request) -> Response:
        refusal = _refusal(request)
        if refusal is not None:
            return refusal
        try:
            report = carry_out(emulator, msgspec.json.decode(request.body, type=Order), target)
        except (ValueError, TypeError, httpx2.InvalidURL) as error:
            return _error(400, str(error))
        return Response(200, msgspec.json.encode(report))

    emulator.routes["POST", PATH] = respond


def carry_out(emulator: Emulator, order: Order, target: str) -> Report:
    """Make, sign and deliver what an order says.

    Args:
        emulator: A running emulator.
        order: The order.
        target: The receiver's URL where the order names none.

    Raises:
        ValueError: The type is unknown and has no data, the wicked name is unknown, or AuthVital
            could not store the data.
        httpx2.InvalidURL: The receiver's URL is none.
    """
    if order.wicked is not None and order.wicked not in WICKED:
        raise ValueError(f"{order.wicked!r} is not a wicked way: use one of {', '.join(WICKED)}")
    data = order.data
    if order.type in SYNC_TYPES or not data:
        # The same subject has the same address in every order that names none.
        email = order.email or (f"{order.sub}@example.test" if order.sub else DEFAULT_EMAIL)
        person = Person.named(email, sub=order.sub, tenant_id=order.tenant_id)
        data = payload(order.type, person) | data
    body = emulator.event(
        order.type, tenant_id=order.tenant_id, application_id=order.application_id, data=data
    )
    plain = emulator.delivery(body)
    deliveries = [plain] if order.wicked is None else WICKED[order.wicked](emulator, plain)
    to = order.to or target
    attempts = [emulator.send(delivery, to) for delivery in deliveries]
    sub = data.get("sub")
    return Report(
        event_id=plain.headers["X-AuthVital-Event-Id"],
        type=order.type,
        sub=sub if isinstance(sub, str) else None,
        to=to,
        answers=[Answer(status=a.status, answer=a.answer, error=a.error) for a in attempts],
    )


def ask(host: str, order: Order, *, timeout: float = 2 * TIMEOUT + 5) -> Report:
    """Ask the emulator that runs at `host` to carry out an order.

    Args:
        host: The emulator's base URL.
        order: The order.
        timeout: Seconds to wait; the receiver itself may take 30 for each request.

    Raises:
        EmulatorError: No emulator answers there, or it refuses the order.
    """
    try:
        response = httpx2.post(
            host + PATH,
            content=msgspec.json.encode(order),
            headers={"Content-Type": "application/json"},
            timeout=timeout,
            trust_env=False,
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise EmulatorError(
            f"no emulator answers at {host} ({type(error).__name__}): start one with `tenantsync "
            "emulate`, and set [authvital] host to the address that it prints"
        ) from error
    if response.status_code in (400, 415):
        raise EmulatorError(_reason(response), wrong=True)
    if response.status_code == 403:
        raise EmulatorError(_reason(response))
    try:
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=Report)
    except (httpx2.HTTPStatusError, msgspec.MsgspecError) as error:
        raise EmulatorError(
            f"what answers at {host} is no emulator (status {response.status_code}): set "
            "[authvital] host to the address that `tenantsync emulate` prints"
        ) from error


def _refusal(request: Request) -> Response | None:
    # A web page can make a browser on this machine send requests here: by a name that resolves to
    # 127.0.0.1, or with a simple content type. Neither may make the emulator send anything.
    host = request.headers.get("host", "").rpartition(":")[0].strip("[]")
    if not _is_loopback(request.client) or not (host == "localhost" or _is_loopback(host)):
        return _error(403, "the emulator takes orders from its own machine only, by its address")
    if request.headers.get("content-type") != "application/json":
        return _error(415, "send an order as application/json")
    return None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _error(status: int, reason: str) -> Response:
    return Response(status, msgspec.json.encode({"error": reason}))


def _reason(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the emulator refused the order with status {response.status_code}"
