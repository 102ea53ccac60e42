"""`tenantsync serve`: the endpoint alone, for a team whose application runs elsewhere."""

import logging

import click
from starlette.applications import Starlette

from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.errors import ConfigError

try:
    import uvicorn
except ImportError:  # the `server` extra is optional
    uvicorn = None  # type: ignore[assignment] # absent is a case of its own, asked for below

__all__ = ["serve"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
@click.option("--path", default="/webhooks/authvital", show_default=True, help="Exact URL path.")
@config_option
@pass_context
def serve(context: Context, host: str, port: int, path: str) -> None:
    """Receive AuthVital's webhooks until interrupted.

    One process serves; run one per machine, or mount the routes into your own application.
    """
    if uvicorn is None:
        raise ConfigError("serving needs uvicorn: pip install 'tenantsync[server]'")
    logging.basicConfig(level=logging.INFO)
    sync = context.sync()
    app = Starlette(routes=sync.routes(path), lifespan=sync.lifespan)
    app.router.redirect_slashes = False
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False)
