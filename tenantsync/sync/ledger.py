"""The ledger of a tenant: the ids that it has seen, and how those that are too old are removed.

An id is what makes a repeated delivery a duplicate. So it stays for as long as the event may come
again, and for as long as the inbox holds the event: see docs/explanation/inbox.md.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final

import msgspec
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.errors import TenantNotIsolated, TenantSyncError
from tenantsync.steps import Step, reach
from tenantsync.sync.failures import translate
from tenantsync.tenancy.engines import READ_ONLY
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

__all__ = ["LedgerPruner"]

# The oldest first, and past those that stay: what was removed before is not in the way any more.
_OLD_POSTGRES: Final = """
SELECT event_id FROM @.av_sync_events WHERE received_at < now() - make_interval(secs => %s)
ORDER BY received_at, event_id LIMIT %s OFFSET %s
"""
_OLD_FILE: Final = """
SELECT event_id FROM main.av_sync_events
WHERE received_at < strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('-%.3f seconds', ?))
ORDER BY received_at, event_id LIMIT ? OFFSET ?
"""
_REMOVE_POSTGRES: Final = "DELETE FROM @.av_sync_events WHERE event_id = ANY (%s::text[])"
_REMOVE_FILE: Final = (
    "DELETE FROM main.av_sync_events WHERE event_id IN (SELECT value FROM json_each(?))"
)
_SETTINGS: Final = (
    "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)"
)


class LedgerPruner:
    """Removes old ids from ledgers, a portion at a time, so that no writer waits long.

    Args:
        registry: Where connections come from.
        isolation: Binds a transaction to a place and proves it.
        statement_timeout: Seconds that one statement may take, waiting for locks included.
        portion: How many ids are removed in one transaction.
    """

    def __init__(
        self,
        registry: EngineRegistry,
        isolation: Isolation,
        *,
        statement_timeout: float = 5.0,
        portion: int = 500,
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._timeout = f"{max(1, round(statement_timeout * 1000))}ms"
        self._portion = portion

    def prune(
        self,
        placement: Placement,
        *,
        older_than: float,
        held: Callable[[], Collection[str]],
        stopping: Callable[[], bool] = lambda: False,
    ) -> int:
        """Remove the ids that were applied long ago, and return how many those were.

        Args:
            placement: Whose ledger.
            older_than: Seconds since an event was applied, by the clock of its database.
            held: Returns ids that stay, however old; asked once, and only where something is old.
            stopping: Asked between portions; True ends it early.

        Raises:
            TenantSyncError: The place cannot be had now, or refused.
        """
        kept: Collection[str] | None = None
        removed = passed = 0
        while not stopping():
            with self._bound(placement, reads=True) as cursor:
                old = self._old(cursor, placement, older_than, passed)
            if not old:
                break
            # Asked after the ids were read: what the inbox took before that is in the answer.
            kept = held() if kept is None else kept
            doomed = [event_id for event_id in old if event_id not in kept]
            passed += len(old) - len(doomed)
            if doomed:
                with self._bound(placement, reads=False) as cursor:
                    _remove(cursor, placement, doomed)
                reach(Step.PRUNED)
                removed += len(doomed)
            if len(old) < self._portion:
                break
        return removed

    @contextmanager
    def _bound(self, placement: Placement, *, reads: bool) -> Iterator[DBAPICursor]:
        """Give a cursor in a transaction of the place, which is committed on leaving."""
        try:
            with self._registry.connect(placement) as leased:
                connection = leased.execution_options(**{READ_ONLY: reads})
                with connection.begin(), closing(connection.connection.cursor()) as cursor:
                    self._enter(connection, cursor, placement)
                    yield cursor
        except TenantSyncError:
            raise
        except Exception as error:
            raise translate(error, placement) from error

    def _enter(self, connection: Connection, cursor: DBAPICursor, placement: Placement) -> None:
        if placement.is_postgres:
            if getattr(connection.connection.driver_connection, "autocommit", False):
                raise TenantNotIsolated(
                    "the connection is in autocommit: give an engine without it"
                )
            cursor.execute(_SETTINGS, (self._timeout, self._timeout))
        self._isolation.bind(cursor, placement)
        self._isolation.locate(cursor, placement)
        self._isolation.confirm(cursor.fetchone(), placement)

    def _old(
        self, cursor: DBAPICursor, placement: Placement, older_than: float, passed: int
    ) -> list[str]:
        statement = _in_schema(_OLD_POSTGRES, placement) if placement.is_postgres else _OLD_FILE
        cursor.execute(statement, (older_than, self._portion, passed))
        return [event_id for (event_id,) in cursor.fetchall()]


def _remove(cursor: DBAPICursor, placement: Placement, event_ids: Sequence[str]) -> None:
    if placement.is_postgres:
        cursor.execute(_in_schema(_REMOVE_POSTGRES, placement), (list(event_ids),))
    else:
        cursor.execute(_REMOVE_FILE, (msgspec.json.encode(event_ids).decode(),))


def _in_schema(statement: str, placement: Placement) -> str:
    # The driver reads a percent sign as a parameter, also within a name.
    schema = schema_of(placement).replace('"', '""').replace("%", "%%")
    return statement.replace("@", f'"{schema}"')
