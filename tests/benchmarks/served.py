"""What `tenantsync serve` runs, on a free port and with its log in a file: `served.py CONFIG LOG`.

Writes its port as a line, serves until SIGTERM.
"""

import os
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from workload import PATH

from tenantsync import TenantSync
from tenantsync.cli.serve import log_to_stderr
from tenantsync.web.serving import BoundedHttpProtocol


def main() -> None:
    """Serve."""
    config, log = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    log_to_stderr()
    sync = TenantSync.from_toml(config)
    app = Starlette(routes=sync.routes(PATH), lifespan=sync.lifespan)
    options = {"http": BoundedHttpProtocol, "log_level": "info", "access_log": False}
    uvicorn.Server(uvicorn.Config(app, lifespan="on", **options)).run(sockets=[listener])


if __name__ == "__main__":
    main()
