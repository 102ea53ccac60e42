"""Reconciles one tenant in a process of its own, and says what that took: `run` starts it.

The list comes over real HTTP from a local AuthVital in the starting process, which makes it up.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tenantsync.authvital.client import IntegrationClient
from tenantsync.control.database import ControlDatabase
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.migrate.control import upgrade_control
from tenantsync.steps import AUDIT_EVENT, Step
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.reconcile import Reconciler
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.server import Response

PATH = "/api/integration/tenant-memberships"
TENANT = "93ce0187-9290-491b-9f06-be209b3d2f92"
OURS = "cmwspxuxh0007ny7dn277ejhn"


@contextmanager
def crowded(count: int) -> Iterator[Emulator]:
    """Serve one tenant of so many members, one in three with a role in our application."""
    with Emulator(seed=1) as authvital:
        authvital.state.add_application("Ours", id=OURS, machine="machine", secret="canary")
        body = _list(count)
        authvital.routes["GET", PATH] = lambda request: Response(
            200, body, {"Content-Type": "application/json"}
        )
        yield authvital


def run(authvital: Emulator, place: Placement, control: Path, *, killed_at: int = 0) -> Any:
    """Reconcile in a process, and return what it said; None if it was killed.

    Args:
        authvital: From `crowded`.
        place: Where the tenant lives.
        control: File of the control database.
        killed_at: Kills it just before, or after, this many commits; 0 does not.
    """
    arguments = {
        "host": authvital.url,
        "url": place.url.render_as_string(hide_password=False),
        "schema": place.schema,
        "control": f"sqlite:///{control}",
        "killed_at": killed_at,
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if killed_at and done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    """Reconcile, and print what became of it, the seconds, and the most memory in bytes."""
    arguments = json.loads(sys.argv[1])
    if arguments["killed_at"]:
        sys.addaudithook(_killing(arguments["killed_at"]))
    place = Placement.of(arguments["url"], arguments["schema"])
    tenant = Tenant(TENANT, "acme", place)
    began = time.monotonic()
    with (
        EngineRegistry() as registry,
        ControlDatabase(arguments["control"]) as control,
        IdentitySyncHandler({TENANT: tenant}.get, registry=registry, observers=[]) as handler,
        IntegrationClient(arguments["host"], "machine", "canary") as client,
    ):
        upgrade_control(control)
        reconciler = Reconciler(
            client,
            handler,
            Mirror(registry, DatabaseIsolation(None)),
            Reconciliations(control),
            application_id=OURS,
        )
        (report,) = reconciler.reconcile([tenant]).tenants
    told = {name: getattr(report, name) for name in ("state", "added", "unchanged", "why")}
    print(json.dumps(told | {"seconds": time.monotonic() - began, "peak": _peak()}))


def _killing(commits: int) -> Any:
    """Return an audit hook that kills the process at the read before, or the commit after."""
    left = [commits]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == AUDIT_EVENT and arguments[0] in (Step.READ.value, Step.COMMITTED.value):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hear


def _peak() -> int:
    # Not ru_maxrss: it counts what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def _list(count: int) -> bytes:
    role = {
        "id": "cmwspxuxh0007ny7dn277role",
        "name": "Editor",
        "slug": "editor",
        "applicationId": OURS,
        "applicationName": "Ours",
    }
    rows = [
        {
            "id": f"cm{number:023d}",
            "status": "ACTIVE",
            "joinedAt": "2026-11-23T09:19:40.000Z",
            "createdAt": "2026-11-23T09:19:40.000Z",
            "user": {
                "id": f"{number:08x}-9290-491b-9f06-be209b3d2f92",
                "email": f"somebody.with.a.name.{number}@corporation.test",
                "givenName": f"Given {number}",
                "familyName": f"Family {number}",
            },
            "roles": [role] if number % 3 == 0 else [],
        }
        for number in range(count)
    ]
    return msgspec.json.encode(
        {
            "tenantId": TENANT,
            "tenantName": "Acme",
            "tenantSlug": "acme",
            "initiateLoginUri": None,
            "memberships": rows,
            "totalCount": count,
        }
    )


if __name__ == "__main__":
    main()
