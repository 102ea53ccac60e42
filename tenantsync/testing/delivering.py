"""How a local AuthVital delivers over HTTP: attempts, ladders, targets, and what waits."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tenantsync.testing.delivery import LADDERS, Attempt, Delivery, Mode, sign, sign_system
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.ladders import SYSTEM_BROKER, hopeless
from tenantsync.testing.outbox import Emission, Outbox, Which
from tenantsync.testing.sending import Sender
from tenantsync.testing.state import State

__all__ = ["Delivering"]

_SIDE_BY_SIDE = 32


class Delivering:
    """The sending half of `Emulator`, which says what the arguments are.

    Args:
        keys: The keys that sign webhooks.
        state: The tables.
        clock: Unix seconds.
        sleep: Waits so many seconds between attempts.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        state: State,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.keys = keys
        self.state = state
        self.clock = clock
        self.outbox = Outbox()
        self._sleep = sleep
        self._sender = Sender(clock)

    def delivery(
        self, body: bytes, *, key: SigningKey | None = None, signed_at: float | None = None
    ) -> Delivery:
        """Sign a body for one attempt.

        Args:
            body: Any bytes; the event headers are taken from it where it is a JSON object.
            key: The key to sign with; None is the one that signs now.
            signed_at: The time of the attempt in unix seconds; None is now.
        """
        try:
            envelope = json.loads(body)
        except (ValueError, RecursionError):
            envelope = None
        names = envelope if isinstance(envelope, dict) else {}
        return sign(
            body,
            key or self.keys.active,
            signed_at=self.clock() if signed_at is None else signed_at,
            event_id=_header(names.get("id")),
            event_type=_header(names.get("type")),
        )

    def send(
        self, delivery: Delivery, url: str, *, mode: Mode = "broker", number: int = 1
    ) -> Attempt:
        """Send a delivery once, exactly as it is.

        The broker takes a redirect for a failure; the legacy core follows it, and turns a 301, 302
        or 303 into a GET without a body, so that a receiver may "succeed" without seeing the event.

        Args:
            delivery: What to send.
            url: The receiver.
            mode: Who sends.
            number: The number of the attempt, for the report.

        Raises:
            RuntimeError: The emulator is not running.
        """
        self._check_running()
        return self._sender.send(delivery, url, mode=mode, number=number)

    def deliver(self, body: bytes, url: str, *, mode: Mode = "broker") -> list[Attempt]:
        """Deliver a body, and again after each failure, until a 2xx or the fifth attempt.

        Every attempt is signed anew with the time of the emulator's clock. The waits between them
        go through the emulator's `sleep`.

        Args:
            body: The raw bytes.
            url: The receiver.
            mode: Whose ladder to climb: `broker` (10 s to 5 min) or `legacy` (1 min to 1 h).

        Returns:
            The attempts, in order; the last one says how it ended.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return self._climb([self.send(self.delivery(body), url, mode=mode)], url, mode)

    def deliver_waiting(
        self,
        url: str | None = None,
        *,
        which: Which | None = None,
        mode: Mode = "broker",
        at_once: bool = False,
    ) -> list[tuple[Emission, list[Attempt]]]:
        """Take what waits in the outbox and deliver it, one after the other.

        Sync events climb the ladder of `deliver`, system events that of `deliver_system`.

        Args:
            url: Where sync events go whose application has no `webhook_url`.
            which: Chooses what to deliver; the rest waits on. None delivers all.
            mode: Who sends.
            at_once: Whether the first attempts of all sync events race each other, as AuthVital's
                do. Further attempts follow one after the other.

        Returns:
            Each emission with its attempts.

        Raises:
            RuntimeError: The emulator is not running.
            ValueError: An application has no `webhook_url`, and no other was given; then nothing
                was taken.
        """
        self._check_running()
        taken = self.outbox.take(which)
        try:
            targets = [self._target(one, url) for one in taken]
        except ValueError:
            self.outbox.put(*taken)
            raise
        first = self._at_once(taken, targets, mode) if at_once else {}
        done = []
        for index, (one, to) in enumerate(zip(taken, targets, strict=True)):
            if to is None:
                attempts = self.deliver_system(one, mode=mode)
            elif index in first:
                attempts = self._climb([first[index]], to, mode)
            else:
                attempts = self.deliver(one.body(), to, mode=mode)
            done.append((one, attempts))
        return done

    def system_delivery(
        self, emission: Emission, *, mode: Mode = "broker", headers: Mapping[str, str] | None = None
    ) -> Delivery:
        """Sign a system event.

        Args:
            emission: The event.
            mode: Who sends; the two order its keys differently, and sign what they send.
            headers: The target's own headers, which override AuthVital's.
        """
        timestamp = str(emission.event["timestamp"])
        body, key = emission.body(mode), self.keys.active
        plain = sign_system(body, key, event_type=emission.type, timestamp=timestamp)
        return replace(plain, headers={**plain.headers, **(headers or {})})

    def send_system(
        self, emission: Emission, *, mode: Mode = "broker", number: int = 1
    ) -> list[Attempt]:
        """Send a system event once to every target that wants its type.

        Args:
            emission: The event.
            mode: Who sends.
            number: The number of the turn, for the reports.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return [
            self.send(
                self.system_delivery(emission, mode=mode, headers=to.headers),
                to.url,
                mode=mode,
                number=number,
            )
            for to in self.state.system_hooks
            if emission.type in to.events
        ]

    def deliver_system(self, emission: Emission, *, mode: Mode = "broker") -> list[Attempt]:
        """Deliver a system event as often as AuthVital does.

        The legacy core sends it once. The broker sends it to all targets again, also to those that
        took it, as long as one of them fails in a way that may pass: no answer, 429 or 5xx. It
        does so ten times within 41 hours, which go through the emulator's `sleep`.

        Args:
            emission: The event.
            mode: Who sends.

        Returns:
            The attempts, in order: one for each target in each turn.

        Raises:
            RuntimeError: The emulator is not running.
        """
        attempts: list[Attempt] = []
        waits = (0.0, *SYSTEM_BROKER.waits) if mode == "broker" else (0.0,)
        for number, wait in enumerate(waits, start=1):
            if wait:
                self._sleep(wait)
            turn = self.send_system(emission, mode=mode, number=number)
            attempts += turn
            if all(one.ok or hopeless(one.status) for one in turn):
                break
        return attempts

    def _at_once(
        self, emissions: list[Emission], targets: list[str | None], mode: Mode
    ) -> dict[int, Attempt]:
        """Let the first attempts of all sync events race; return them by the event's index."""
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            sent = {
                index: pool.submit(self.send, self.delivery(one.body()), to, mode=mode)
                for index, (one, to) in enumerate(zip(emissions, targets, strict=True))
                if to is not None
            }
        return {index: attempt.result() for index, attempt in sent.items()}

    def _climb(self, attempts: list[Attempt], url: str, mode: Mode) -> list[Attempt]:
        """Go on after the first attempt at what it sent, until a 2xx or the last step."""
        body = attempts[0].delivery.body
        for wait in LADDERS[mode]:
            if attempts[-1].ok:
                break
            self._sleep(wait)
            number = len(attempts) + 1
            attempts.append(self.send(self.delivery(body), url, mode=mode, number=number))
        return attempts

    def _target(self, emission: Emission, url: str | None) -> str | None:
        """Return where a sync event goes; None is wherever system webhooks go."""
        if emission.channel == "system":
            return None
        to = self.state.applications[emission.application_id].webhook_url or url
        if to is None:
            raise ValueError("the application has no webhook_url: set it, or name a URL here")
        return to

    def _check_running(self) -> None:
        raise NotImplementedError


def _header(value: object) -> str:
    # AuthVital would put any text here; HTTP takes only visible ASCII without harm.
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else "-"
