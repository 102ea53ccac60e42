"""`tenantsync serve`: the endpoint alone, for a team whose application runs elsewhere."""

import logging
import signal
import sys
from typing import Final, NoReturn

import click
from starlette.applications import Starlette

from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.errors import ConfigError

try:
    from tenantsync.web.serving import BoundedHttpProtocol
    from tenantsync.web.stopping import GracefulServer
except ImportError:  # the `server` extra is optional
    GracefulServer = None  # type: ignore[assignment, misc] # absent is a case of its own

__all__ = ["log_to_stderr", "serve"]

_LONGEST_STOP: Final = 30.0  # seconds; AuthVital waits no longer for an answer
_FIELDS: Final = (
    *("event_type", "event_id", "tenant", "outcome", "reason", "error", "seconds", "door", "key"),
    "checks",
)


class _Line(logging.Formatter):
    """One line per record: what happened, and the fields that say to whom and how."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the message with its fields behind it."""
        line = super().formatMessage(record)
        found = ((name, getattr(record, name, None)) for name in _FIELDS)
        fields = " ".join(
            f"{name}={value:.4f}" if isinstance(value, float) else f"{name}={value}"
            for name, value in found
            if value is not None
        )
        return f"{line} {fields}" if fields else line


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--path", default="/webhooks/authvital", show_default=True, help="Exact URL path.")
@config_option
@pass_context
def serve(context: Context, host: str, port: int, path: str) -> None:
    """Receive AuthVital's webhooks until interrupted.

    One process serves; run one per machine, or mount the routes into your own application. SIGTERM
    or Ctrl-C finishes what is in flight, and answers the rest 503 meanwhile.
    """
    if GracefulServer is None:
        raise ConfigError("serving needs uvicorn: pip install 'tenantsync[server]'")
    sync = context.sync()
    log_to_stderr()
    app = Starlette(routes=[*sync.routes(path), *sync.ops_routes()], lifespan=sync.lifespan)
    # A redirect loses the event at a sender that follows it (docs/reference/provider.md).
    app.router.redirect_slashes = False
    # uvicorn stops gracefully, and then raises the signal again for whoever listened before. That
    # would be Python, which ends the process as if it had failed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    server = GracefulServer(
        app,
        longest=_LONGEST_STOP,
        host=host,
        port=port,
        http=BoundedHttpProtocol,
        log_level="info",
        access_log=False,
    )
    server.run()
    if not server.started:
        raise click.exceptions.Exit(1)  # uvicorn said why


def log_to_stderr() -> None:
    """Have what happens written to standard error, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tenantsync").setLevel(logging.INFO)


def _end(*_: object) -> NoReturn:
    sys.exit(0)
