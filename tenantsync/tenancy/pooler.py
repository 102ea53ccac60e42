"""What stands between us and PostgreSQL: nothing, or a pooler, and what that one shares."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, Final, cast

import psycopg
from sqlalchemy import Connection, text

__all__ = ["Pooling", "find_pooling"]

_ROUNDS: Final = 4
_BACKEND: Final = text("SELECT pg_backend_pid()")


class Pooling(StrEnum):
    """What of the server a connection has to itself."""

    NONE = "none"
    """A session: there is no pooler."""
    SESSION = "session"
    """A session of a pooler's, for as long as the connection is open."""
    TRANSACTION = "transaction"
    """A session of a pooler's, until the transaction ends."""


def find_pooling(
    connection: Connection, another: Callable[[], AbstractContextManager[Connection]]
) -> Pooling:
    """Return what stands between the connection and PostgreSQL.

    A server names the process that serves a connection when that begins. A pooler has to make a
    name up, because there is none yet; so a server that calls itself otherwise is behind one. If
    the process changes while the connection is open, or serves another one too, it is shared.

    Args:
        connection: On PostgreSQL, in no transaction, and in none afterwards.
        another: Gives a further connection by the same URL; asked only if there is a pooler.
    """
    raw = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    before = _backend(connection)
    if before == raw.info.backend_pid:
        return Pooling.NONE
    with another() as other:
        for _ in range(_ROUNDS):
            # A pooler that hands out what was used last gives the other one our process; one
            # that goes round gives us another process, now or in a later round.
            if _backend(other) == before:
                return Pooling.TRANSACTION
            now = _backend(connection)
            if now != before:
                return Pooling.TRANSACTION
            before = now
    return Pooling.SESSION


def _backend(connection: Connection) -> int:
    with connection.begin():
        return int(connection.scalar(_BACKEND) or 0)
