"""Signals over NATS JetStream: whoever parks or mends a tenant wakes one of the workers.

Needs the extra `nats`. A signal is a hint and the inbox is the truth, so nothing here is worth
waiting for: what cannot be published is forgotten, and an outage of the server costs promptness.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from tenantsync.errors import ConfigError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

try:
    from nats.aio.client import Client
    from nats.errors import ConnectionClosedError
    from nats.errors import TimeoutError as NothingCame
    from nats.js.api import (
        AckPolicy,
        ConsumerConfig,
        DiscardPolicy,
        RetentionPolicy,
        StorageType,
        StreamConfig,
    )
    from nats.js.errors import APIError, NotFoundError
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "nats":
        raise
    _INSTALLED = False
else:
    _INSTALLED = True

__all__ = ["NatsSignals"]

_LOG: Final = logging.getLogger("tenantsync")
_SCHEMES: Final = ("nats", "tls")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BETWEEN: Final = re.compile(r",(?=[a-z]+://)")
_CONSUMER: Final = "workers"
_MAX_ID_BYTES: Final = 255
_MAX_AGE: Final = 600.0
_MAX_SIGNALS: Final = 10_000
_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_MESSAGE: Final = 1024  # an id, and the headers that a client adds
_ACK_WAIT: Final = 10.0
_MAX_DELIVERIES: Final = 3
_ANSWER_WITHIN: Final = 5
_FETCH_FOR: Final = 30.0
_PING_EVERY: Final = 20
_LINGER: Final = 2.0
_JOIN: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Login:
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


class NatsSignals:
    """Publishes signals to a JetStream work queue and takes them from it, on a thread of its own.

    Each signal wakes one of those who listen, and another one if that one does not confirm it
    within ten seconds. Two signals for one tenant that nobody took yet are one. The server keeps
    them for ten minutes at most.

    The stream and its consumer are made where they are missing, and used as they are where an
    operator made them. Nothing is opened before the first signal is published or listened to.

    Args:
        url: The server, such as `"nats://user:password@localhost:4222"`; `tls://` for TLS, and
            `nats://token@host` for a token. Several servers of a cluster are separated by commas;
            what stands before the `@` of the first that has one is used for all. Special
            characters in it are percent-encoded.
        name: What sets these workers apart from others on the same server: another application's
            must not take our signals. The application's id is a good choice.
        retry_after: Seconds between two attempts to connect.
        max_waiting: Tenants whose signals may wait for the server; further ones are dropped.

    Raises:
        ConfigError: The extra `nats` is not installed, or the URL is of another kind.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "tenantsync",
        retry_after: float = 2.0,
        max_waiting: int = 1000,
    ) -> None:
        if not _INSTALLED:
            raise ConfigError('signals over NATS need its client: pip install "tenantsync[nats]"')
        self._servers, self._login = _servers(url)
        token = name if _TOKEN.fullmatch(name) else _digest(name)
        self.stream = f"tenantsync-{token}"
        """Name of the stream."""
        self._subject = f"tenantsync.{token}.drain"
        self._retry_after = retry_after
        self._max_waiting = max_waiting
        # Guards what callers' threads and the thread share, for a few assignments at a time.
        self._lock = threading.Lock()
        self._waiting: dict[str, None] = {}  # in order, each tenant once
        self._wake: Callable[[str], None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Of the thread's loop alone.
        self._changed = asyncio.Event()
        self._listening = asyncio.Event()
        self._published = asyncio.Event()
        self._stopping = asyncio.Event()
        self._reachable: bool | None = None
        self._trouble: Exception | None = None

    def publish(self, tenant_id: str) -> None:
        """Wake a worker for a tenant, if that can be done. Never blocks, and never raises.

        Args:
            tenant_id: AuthVital's id of the tenant; anything longer than 255 bytes is no id.
        """
        with self._lock:
            full = len(self._waiting) >= self._max_waiting and tenant_id not in self._waiting
            if self._closed or full or len(_encoded(tenant_id)) > _MAX_ID_BYTES:
                return
            self._waiting[tenant_id] = None
            self._start()
            self._tell(self._look)

    def listen(self, wake: Callable[[str], None]) -> None:
        """Begin to call a function for the signals that this process gets. Returns at once.

        Args:
            wake: Called on the thread of the signals with the tenant's id; must be quick.
        """
        with self._lock:
            if self._closed:
                return
            self._wake = wake
            self._start()
            self._tell(self._listening.set)

    def close(self) -> None:
        """Publish what waits if that takes no longer than two seconds, and end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._tell(self._stopping.set)
        if thread is not None:
            thread.join(_LINGER + _JOIN)

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="tenantsync-signals", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had: the next signal tries again
            _LOG.warning("tenantsync.signals_unavailable", extra={"reason": type(error).__name__})
        else:
            self._thread = thread

    def _tell(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    def _look(self) -> None:
        self._published.clear()
        self._changed.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # a thread has nobody above it to tell
            _LOG.error("tenantsync.signals_failed", extra={"reason": type(error).__name__})

    async def _main(self) -> None:
        with self._lock:
            # From here on callers tell the loop. What they said before is looked up.
            self._loop = asyncio.get_running_loop()
            if self._wake is not None:
                self._listening.set()
            if self._closed:
                self._stopping.set()
            if not self._waiting:
                self._published.set()
        try:
            connecting = asyncio.create_task(self._stay_connected())
            await self._stopping.wait()
            # A command publishes and ends: its signal is worth a moment.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._published.wait(), _LINGER)
            connecting.cancel()
            await asyncio.wait((connecting,))
        finally:
            with self._lock:
                self._loop = None

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._session()
            except Exception as error:  # whatever it is, the next attempt may fare better
                self._log_outage(self._trouble or error)
            await asyncio.sleep(self._retry_after)

    async def _session(self) -> None:
        """Connect and serve until that fails.

        The client could reconnect by itself, but then nobody would look after stream and consumer:
        a server may come back without them.
        """
        ended = asyncio.Event()
        self._trouble = None

        async def note_end() -> None:
            ended.set()

        async def note_trouble(error: Exception) -> None:
            self._trouble = error

        client = Client()
        try:
            await asyncio.wait_for(
                client.connect(
                    self._servers,
                    user=self._login.user,
                    password=self._login.password,
                    token=self._login.token,
                    name="tenantsync",
                    allow_reconnect=False,
                    # The client looks through the servers for as long as this lets it.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=_ANSWER_WITHIN,
                    ping_interval=_PING_EVERY,
                    closed_cb=note_end,
                    error_cb=note_trouble,
                ),
                2 * _ANSWER_WITHIN,
            )
            serving = asyncio.create_task(self._serve(client.jetstream(timeout=_ANSWER_WITHIN)))
            ending = asyncio.create_task(ended.wait())
            try:
                await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                serving.cancel()
                ending.cancel()
                await asyncio.wait((serving, ending))
                # A client that goes down cancels who waits for it: that is no cancellation of ours.
                failure = None if serving.cancelled() else serving.exception()
            raise failure or ConnectionClosedError
        finally:
            await asyncio.wait_for(client.close(), _LINGER)

    async def _serve(self, context: "JetStreamContext") -> None:
        await self._make_stream(context)
        if not self._reachable:
            level = logging.DEBUG if self._reachable is None else logging.INFO
            _LOG.log(level, "tenantsync.signals_available")
            self._reachable = True
        async with asyncio.TaskGroup() as both:
            both.create_task(self._publish_waiting(context))
            both.create_task(self._take(context))

    def _log_outage(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self._reachable is not False:  # once an outage, by its class: texts may hold the URL
            _LOG.warning("tenantsync.signals_unavailable", extra={"reason": type(error).__name__})
            self._reachable = False

    async def _make_stream(self, context: "JetStreamContext") -> None:
        with contextlib.suppress(NotFoundError):
            await context.stream_info(self.stream)
            return
        try:
            await context.add_stream(
                StreamConfig(
                    name=self.stream,
                    description="Tells workers of tenantsync which tenants to drain",
                    subjects=[f"{self._subject}.*"],
                    retention=RetentionPolicy.WORK_QUEUE,
                    discard=DiscardPolicy.OLD,
                    max_msgs_per_subject=1,
                    max_msgs=_MAX_SIGNALS,
                    max_bytes=_MAX_BYTES,
                    max_msg_size=_MAX_MESSAGE,
                    max_age=_MAX_AGE,
                    storage=StorageType.FILE,
                )
            )
        except APIError:
            # Another process was quicker; and if it was not, this says so.
            await context.stream_info(self.stream)

    async def _publish_waiting(self, context: "JetStreamContext") -> None:
        while True:
            with self._lock:
                tenant_id = next(iter(self._waiting), None)
                if tenant_id is not None:
                    # Taken out before it is sent: one that comes meanwhile is another signal.
                    del self._waiting[tenant_id]
            if tenant_id is None:
                self._published.set()
                await self._changed.wait()
                self._changed.clear()
                continue
            try:
                await context.publish(
                    f"{self._subject}.{_digest(tenant_id)}",
                    _encoded(tenant_id),
                    timeout=_ANSWER_WITHIN,
                )
            except APIError:
                continue  # the server does not want it: the worker's interval has to do
            except BaseException:
                with self._lock:
                    self._waiting.setdefault(tenant_id)
                raise

    async def _take(self, context: "JetStreamContext") -> None:
        await self._listening.wait()
        subscription = await context.pull_subscribe(
            f"{self._subject}.*",
            durable=_CONSUMER,
            stream=self.stream,
            config=ConsumerConfig(
                ack_policy=AckPolicy.EXPLICIT, ack_wait=_ACK_WAIT, max_deliver=_MAX_DELIVERIES
            ),
        )
        while True:
            try:
                messages = await subscription.fetch(1, timeout=_FETCH_FOR)
            except NothingCame:
                continue
            for message in messages:
                self._pass_on(message.data)
                await message.ack()

    def _pass_on(self, data: bytes) -> None:
        wake = self._wake
        if wake is None or len(data) > _MAX_ID_BYTES:
            return
        try:
            wake(data.decode("utf-8", "surrogatepass"))
        except Exception as error:  # one bad signal, or a worker that is going: take the next
            _LOG.warning("tenantsync.signal_failed", extra={"reason": type(error).__name__})


def _servers(url: str) -> tuple[list[str], _Login]:
    """Return the servers without credentials, and the credentials as the client takes them.

    The client would put URLs into its errors, and takes percent-encoding literally.
    """
    parts = [urlsplit(server) for server in _BETWEEN.split(url)]
    if not all(map(_is_server, parts)):
        raise ConfigError(
            "[worker] signals: is no URL of a NATS server; "
            "write nats://HOST:4222, or tls://HOST:4222 for TLS"
        )
    servers = [f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts]
    for part in parts:
        if part.username and part.password is not None:
            return servers, _Login(user=unquote(part.username), password=unquote(part.password))
        if part.username:
            return servers, _Login(token=unquote(part.username))
    return servers, _Login()


def _is_server(part: SplitResult) -> bool:
    try:
        _ = part.port
    except ValueError:
        return False
    return part.scheme in _SCHEMES and bool(part.hostname) and "," not in part.netloc


def _digest(text: str) -> str:
    # An id may hold dots, spaces and wildcards, which mean something in a subject.
    return hashlib.sha256(_encoded(text)).hexdigest()[:32]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
