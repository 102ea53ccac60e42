"""What a database's error means for the events that met it.

The driver's own words stay in the chain of causes and out of the message: they repeat the values of
rows, which are personal data.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tenantsync.errors import (
    EventRefused,
    HookFailed,
    TenantNotMigrated,
    TenantSyncError,
    TenantUnavailable,
    Unavailable,
)
from tenantsync.tenancy.engines import ServerSilent
from tenantsync.tenancy.registry import NoConnection
from tenantsync.tenants import Placement

__all__ = [
    "blames_event",
    "blames_place",
    "is_locked",
    "is_lost",
    "is_silent",
    "is_transient",
    "is_waiting",
    "translate",
]

_TRANSIENT: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_MIGRATED: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
)
_NOT_MIGRATED_FILE: Final = ("no such", "has no column named")  # SQLite has no codes for these
_EVENTS_OWN: Final = (
    psycopg.IntegrityError,
    psycopg.DataError,
    psycopg.errors.RaiseException,
    sqlite3.IntegrityError,
    sqlite3.DataError,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed at once.

    The server chose it as a victim; or a hook's statement was prepared, on an engine of the
    application's own, before the table was migrated. Rolling back makes psycopg forget those.
    """
    if isinstance(error, HookFailed):
        return error.__cause__ is not None and _is_outdated(_driver_error(error.__cause__))
    return isinstance(_driver_error(error), _TRANSIENT)


def is_lost(error: BaseException) -> bool:
    """Whether the connection broke under a running transaction.

    Doing it again is safe even if the COMMIT had got through: the ledger knows the ids.
    """
    cause = _driver_error(error)
    return isinstance(cause, psycopg.OperationalError) and (
        cause.sqlstate is None or cause.sqlstate[:3] in ("57P", "080")
    )


def is_silent(error: BaseException) -> bool:
    """Whether the server took what we sent and did not answer in time."""
    # The connection is closed then, and the rollback says so in place of the first error.
    return any(isinstance(_driver_error(cause), ServerSilent) for cause in _chain(error))


def is_locked(error: BaseException) -> bool:
    """Whether somebody else held a lock for longer than we were ready to wait; also in a hook."""
    for cause in _chain(error):
        found = _driver_error(cause)
        if isinstance(found, psycopg.errors.LockNotAvailable):
            return True
        if isinstance(found, sqlite3.OperationalError):
            # The lowest byte is the code, the others say more of it.
            return getattr(found, "sqlite_errorcode", 0) & 0xFF in _BUSY
    return False


def is_waiting(error: BaseException) -> bool:
    """Whether a statement ran out of time, for a lock or by itself."""
    return isinstance(_driver_error(error), psycopg.errors.QueryCanceled) or is_locked(error)


def blames_event(error: BaseException) -> bool:
    """Whether one event's data may be to blame, such as a constraint of the application's own."""
    return isinstance(_driver_error(error), _EVENTS_OWN)


def blames_place(error: TenantSyncError) -> bool:
    """Whether it speaks against the place: not against an event, our own limits, or bad luck."""
    cause = error.__cause__
    return not (
        error.blames_event
        or isinstance(error, NoConnection)
        or (cause is not None and (isinstance(cause, PoolTimeout) or is_transient(cause)))
    )


def translate(
    error: BaseException, placement: Placement, *, alone: bool = False
) -> TenantSyncError:
    """Return what the sender and the operator are told, in place of a driver's error.

    Args:
        error: What went wrong.
        placement: Where.
        alone: Whether one event was alone in the transaction, and may be blamed.
    """
    if isinstance(error, TenantSyncError):
        return error
    cause = _driver_error(error)
    if isinstance(cause, _NOT_MIGRATED) or (
        isinstance(cause, sqlite3.OperationalError)
        and any(words in str(cause) for words in _NOT_MIGRATED_FILE)
    ):
        found: Unavailable = TenantNotMigrated(
            f"tables are missing or too old in {placement}: run `tenantsync migrate upgrade`"
        )
    elif isinstance(error, PoolTimeout):
        found = TenantUnavailable(f"no connection became free in time for {placement}")
    else:
        state = getattr(cause, "sqlstate", None)
        told = f"{type(cause).__name__} {state}" if state else type(cause).__name__
        if alone and blames_event(error):
            found = EventRefused(
                f"a constraint or trigger of the application's own in {placement} refuses what the "
                f"event would write ({told}): look at it, or discard the event"
            )
        else:
            found = TenantUnavailable(f"{placement} did not take the event ({told})")
    found.__cause__ = error
    return found


def _is_outdated(error: BaseException) -> bool:
    """Whether it says `cached plan must not change result type`, in whatever language."""
    return (
        isinstance(error, psycopg.errors.FeatureNotSupported)
        and error.diag.source_function == "RevalidateCachedQuery"
    )


def _driver_error(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give the error and what led to it, each once: drivers and hooks make circles of them."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
