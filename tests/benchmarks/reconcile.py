"""How long one tenant's backfill and the next comparison take, and how much memory.

    python tests/benchmarks/reconcile.py                     # 100,000 people on both databases
    python tests/benchmarks/reconcile.py --people 10000 --database sqlite

It asserts nothing. The list comes over loopback HTTP; the times include it.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import postgres
from backfilling import crowded, run

from tenantsync.migrate import upgrade
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant


def main() -> None:
    """Measure what was asked for, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tenantsync-reconcile-"))
    try:
        with crowded(arguments.people) as authvital:
            for database in arguments.database or ["sqlite", "postgresql"]:
                server = postgres.start() if database == "postgresql" else None
                try:
                    place = _place(folder, server)
                    for what in ("backfill", "compare"):
                        told = run(authvital, place, folder / f"{database}-control.db")
                        print(
                            f"{database:<10}  {what:<8}  {arguments.people} people  "
                            f"{told['seconds']:6.1f} s  "
                            f"{arguments.people / told['seconds']:7.0f} people/s  "
                            f"peak {told['peak'] / 1e6:4.0f} MB  {told['state']}"
                        )
                finally:
                    if server is not None:
                        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(folder: Path, server: postgres.Server | None) -> Placement:
    url = f"sqlite:///{folder / 'tenant.db'}"
    schema = None
    if server is not None:
        with server.connect("postgres") as connection:
            connection.execute("CREATE DATABASE backfill TEMPLATE template0")
        url, schema = server.url("backfill"), "tenant_acme"
    place = Placement.of(url, schema)
    upgrade([Tenant("id", "acme", place)], isolation=DatabaseIsolation(None)).check()
    return place


if __name__ == "__main__":
    main()
