"""Sending a signed delivery over HTTP as AuthVital's two senders do."""

import threading
from collections.abc import Callable

import httpx2

from tenantsync.testing.delivery import TIMEOUT, Attempt, Delivery, Mode

__all__ = ["Sender"]

_MAX_ANSWER = 64 * 1024
_MAX_REDIRECTS = 20  # as many as Node's fetch follows


class Sender:
    """Posts deliveries from any thread. Opens nothing before the first one.

    Args:
        clock: Unix seconds, for the reports.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None

    def close(self) -> None:
        """Close the connections; the next delivery opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def send(self, delivery: Delivery, url: str, *, mode: Mode, number: int) -> Attempt:
        """Send a delivery once, exactly as it is.

        Args:
            delivery: What to send.
            url: The receiver.
            mode: Who sends: the legacy core follows redirects.
            number: The number of the attempt, for the report.
        """
        client, began = self._http(), self._clock()
        try:
            response = client.post(
                url,
                content=delivery.body,
                headers=dict(delivery.headers),
                follow_redirects=mode == "legacy",
            )
        except httpx2.HTTPError as error:
            reason = str(error) or "no answer in time"
            return Attempt(number, began, delivery, error=f"{type(error).__name__}: {reason}")
        answer = response.content[:_MAX_ANSWER].decode("utf-8", "replace")
        return Attempt(number, began, delivery, response.status_code, answer)

    def _http(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(
                    timeout=TIMEOUT,
                    # The receiver is local, or named by the user: no proxy of the environment.
                    trust_env=False,
                    max_redirects=_MAX_REDIRECTS,
                    headers={"User-Agent": "node"},
                    limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64),
                )
            return self._client
