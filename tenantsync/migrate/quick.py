"""The shortest way through one schema: its script in three messages to PostgreSQL.

For a place of which it is known what it holds, by a script that was found to be right at another
one. Whatever is not as it should be ends it with nothing done, and the longer way is taken.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.migrate.moves import Limits
from tenantsync.migrate.schemas import (
    lock_name,
    opening,
    raw_of,
    refuse_other_transaction,
    versions_query,
)
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["replay_quickly"]

_Row = tuple[Any, ...]
_END: Final = b";\n"


class _Lines:
    """Takes the statements that an isolation would execute, with their values written into them."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._writer = psycopg.ClientCursor(raw)
        self.lines: list[bytes] = []

    def execute(self, statement: str, values: Sequence[object] | None = None) -> None:
        """Note a statement."""
        self.lines.append(self._writer.mogrify(statement, values or None).encode())


def replay_quickly(
    connection: Connection,
    isolation: Isolation,
    placement: Placement,
    limits: Limits,
    *,
    start: tuple[str, ...],
    script: bytes,
) -> bool:
    """Run a script in a transaction of its own: locked, bound, proven before and after.

    Args:
        connection: In no transaction, and in none afterwards.
        isolation: Binds and proves.
        placement: The place.
        limits: How long it may wait.
        start: The revisions that it should stand at.
        script: The statements, by which the versions change too.

    Returns:
        Whether it was done. If not, nothing was: another run has the lock, or the place is not
        where it was.

    Raises:
        TenantNotIsolated: The transaction is not in the place, or ended; what the database says to
            the statements comes out as it is.
    """
    raw = raw_of(connection)
    if raw.autocommit:
        return False
    binding, locating = _Lines(raw), _Lines(raw)
    isolation.bind(cast("DBAPICursor", binding), placement)
    isolation.locate(cast("DBAPICursor", locating), placement)
    versions = versions_query(schema_of(placement))
    settings = _Lines(raw)
    settings.execute(*opening(limits, lock_name(placement)))
    proof = [*locating.lines, versions]
    # We begin and commit ourselves, so that it takes no messages of their own.
    raw.autocommit = True
    try:
        entered = _ask(raw, _END.join([b"BEGIN", *settings.lines, *binding.lines, *proof]))
        locked, before = entered[0][0][-1], entered[-2]
        if not locked or _sorted(entered[-1]) != start:
            _ask(raw, b"ROLLBACK")
            return False
        transaction = isolation.confirm(before[0], placement)
        # The script changes the versions from those that were just read; that it does so rightly
        # was seen at another place.
        left = _ask(raw, _END.join([script, *locating.lines]))
        refuse_other_transaction(left[-1][0], transaction)
        isolation.confirm(left[-1][0], placement)
        _ask(raw, b"COMMIT")
    except BaseException:
        if not raw.closed and raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            _ask(raw, b"ROLLBACK")
        raise
    else:
        return True
    finally:
        if not raw.closed:
            raw.autocommit = False


def _ask(raw: psycopg.Connection[Any], script: bytes) -> list[list[_Row]]:
    """Return the rows of each statement that has some, in order."""
    cursor = psycopg.Cursor(raw, row_factory=tuple_row)
    cursor.execute(script, prepare=False)
    found = []
    while True:
        result = cursor.pgresult
        if result is not None and result.status == psycopg.pq.ExecStatus.TUPLES_OK:
            found.append(cursor.fetchall())
        if not cursor.nextset():
            return found


def _sorted(rows: Sequence[_Row]) -> tuple[str, ...]:
    return tuple(sorted(version for (version,) in rows))
