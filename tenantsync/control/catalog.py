"""The catalog: which tenants were added at run time, how far each one is, and who is suspended.

What it says comes before what is done (docs/reference/tables.md): a tenant is written down as
`provisioning` before its place is made, and as `dropping` before its place is taken away. Whoever
is killed in between leaves a note of what is to be finished.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from tenantsync.config.check import located
from tenantsync.control.database import ControlDatabase, ControlMissing
from tenantsync.control.tables import changes, now_of, suspensions, tenants
from tenantsync.errors import ConfigError
from tenantsync.tenants import Placement

__all__ = ["Catalog", "Entry", "Mark", "News", "State", "Wish", "place_of"]


class State(StrEnum):
    """How far a tenant of the catalog is."""

    PROVISIONING = "provisioning"
    """Its place is being made, or whoever made it was interrupted."""
    ACTIVE = "active"
    """It is in service, unless it is suspended."""
    REMOVED = "removed"
    """It is out of service, and its data is kept."""
    DROPPING = "dropping"
    """Its place is being taken away, or whoever did so was interrupted."""


_FORWARD: Final = {
    State.ACTIVE: (State.PROVISIONING,),
    State.REMOVED: (State.PROVISIONING, State.ACTIVE),
    State.DROPPING: (State.PROVISIONING, State.ACTIVE, State.REMOVED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for when a tenant is added.

    Args:
        key: Its key.
        id: AuthVital's id.
        url: Its own database URL, or None to follow the configuration.
        schema: Its own schema, or None.
        role: Its own role, or None.
        place: What `place_of` says of where that is; None where all tenants share one place.
        made: Whether the place is not there yet, so that whoever adds the tenant makes it.
    """

    key: str
    id: str
    url: str | None = field(default=None, repr=False)
    schema: str | None = None
    role: str | None = None
    place: str | None = None
    made: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Wish):
    """A tenant of the catalog.

    Args:
        state: How far it is.
        added_at: When it was written down.
    """

    state: State
    added_at: datetime


@dataclass(frozen=True, slots=True)
class Mark:
    """How much of the catalog somebody has read.

    Args:
        made: The number of the last change.
        deleted: How many entries were ever deleted.
    """

    made: int
    deleted: int


@dataclass(frozen=True, slots=True)
class News:
    """What changed since a mark.

    Args:
        mark: Up to where this is.
        whole: Whether `entries` are all there are, and not only those that changed.
        entries: Tenants.
        suspended: The keys of all that are suspended, and since when.
    """

    mark: Mark
    whole: bool
    entries: tuple[Entry, ...]
    suspended: dict[str, datetime]


class Catalog:
    """Reads and writes the catalog; each call is a transaction of its own.

    All of it raises ControlMissing where the control database was not made yet, and
    ControlUnavailable where it does not answer.

    Args:
        database: The control database.
    """

    def __init__(self, database: ControlDatabase) -> None:
        self.database = database

    def news(self, since: Mark | None = None) -> News | None:
        """Return what changed since a mark, everything without one, or None for nothing."""
        with self.database.read() as connection:
            made, deleted = connection.execute(select(changes.c.made, changes.c.deleted)).one()
            mark = Mark(made, deleted)
            if mark == since:
                return None
            # A count that went back, or entries gone: what is known may be wrong in any way.
            whole = since is None or since.deleted != deleted or since.made > made
            query = select(tenants)
            if not whole and since is not None:
                query = query.where(tenants.c.changed > since.made)
            entries = tuple(_entry(row) for row in connection.execute(query).mappings())
            suspended = connection.execute(select(suspensions.c.key, suspensions.c.since))
            return News(mark, whole, entries, {row.key: row.since for row in suspended})

    def find(self, key: str) -> Entry | None:
        """Return the tenant with this key, in whatever state, or None."""
        try:
            with self.database.read() as connection:
                return _find(connection, key)
        except ControlMissing:
            return None

    def reserve(self, wish: Wish) -> Entry:
        """Write a tenant down as `provisioning` and return it; a second call finds the first one's.

        Of several that want one key, id or place, the first wins. A tenant that is `active` comes
        back as it is; one that was removed goes back to `provisioning`.

        Raises:
            ConfigError: Another tenant has the key, the id or the place, or this one was added in
                another way.
        """
        try:
            with self.database.write() as connection:
                number = _count(connection)
                own = _refuse_taken(connection, wish)
                if own is None:
                    now = now_of(connection.dialect.name)
                    values = _columns(wish) | {"state": State.PROVISIONING, "changed": number}
                    connection.execute(insert(tenants).values(**values, added_at=now))
                elif own.state is State.REMOVED:
                    _move(connection, own.key, State.PROVISIONING, number)
                elif own.state is State.DROPPING:
                    raise ConfigError(
                        f"tenant {wish.key!r} is being dropped: finish that with `tenantsync "
                        f"tenants remove {wish.key} --drop`, then add it"
                    )
                found = _find(connection, wish.key)
        except IntegrityError as error:
            # Only where somebody wrote past us: writers of the catalog take turns.
            raise ConfigError(
                f"tenant {wish.key!r} has the key, the id or the place of another tenant"
            ) from error
        assert found is not None
        return found

    def move(self, key: str, state: State) -> Entry:
        """Put a tenant into a later state; it may be there already.

        Raises:
            ConfigError: There is no such tenant, or the state does not follow on its own.
        """
        with self.database.write() as connection:
            number = _count(connection)
            entry = _find(connection, key)
            if entry is None:
                raise ConfigError(f"no tenant {key!r} was added to the control database")
            if entry.state is not state:
                if entry.state not in _FORWARD.get(state, ()):
                    raise ConfigError(
                        f"tenant {key!r} is {entry.state.value} and cannot become {state.value}"
                    )
                _move(connection, key, state, number)
            found = _find(connection, key)
        assert found is not None
        return found

    def forget(self, key: str) -> bool:
        """Delete a tenant that is `dropping`, and its suspension; return whether it was there."""
        with self.database.write() as connection:
            _count(connection)
            gone = connection.execute(
                delete(tenants).where(tenants.c.key == key, tenants.c.state == State.DROPPING)
            ).rowcount
            if gone:
                connection.execute(delete(suspensions).where(suspensions.c.key == key))
                connection.execute(update(changes).values(deleted=changes.c.deleted + 1))
            return bool(gone)

    def suspend(self, key: str) -> bool:
        """Suspend a tenant of the file or of the catalog; return whether it was not before."""
        with self.database.write() as connection:
            _count(connection)
            there = connection.scalar(select(suspensions.c.key).where(suspensions.c.key == key))
            if there is None:
                now = now_of(connection.dialect.name)
                connection.execute(insert(suspensions).values(key=key, since=now))
            return there is None

    def resume(self, key: str) -> bool:
        """End a suspension; return whether there was one."""
        with self.database.write() as connection:
            _count(connection)
            gone = connection.execute(delete(suspensions).where(suspensions.c.key == key))
            return bool(gone.rowcount)


def place_of(placement: Placement) -> str:
    """Return where a placement is, in words that no two places share; holds no login."""
    return json.dumps(located(placement.url, placement.schema), ensure_ascii=False)


def _count(connection: Connection) -> int:
    # First of all statements: from here on, writers take turns until this one commits.
    connection.execute(update(changes).values(made=changes.c.made + 1))
    return int(connection.execute(select(changes.c.made)).scalar_one())


def _refuse_taken(connection: Connection, wish: Wish) -> Entry | None:
    """Return the entry that this wish made before, or None; refuse what others have."""
    same = [tenants.c.key == wish.key, tenants.c.id == wish.id]
    if wish.place is not None:
        same.append(tenants.c.place == wish.place)
    rows = connection.execute(select(tenants).where(or_(*same))).mappings()
    entries = [_entry(row) for row in rows]
    own = next((entry for entry in entries if entry.key == wish.key), None)
    if own is not None and own.id != wish.id:
        raise ConfigError(
            f"the key {wish.key!r} belongs to the tenant with the id {own.id!r}{_kept(own)}"
        )
    for entry in entries:
        if entry.key != wish.key:
            what = f"the id {wish.id!r}" if entry.id == wish.id else f"the place of {wish.key!r}"
            raise ConfigError(f"{what} belongs to the tenant {entry.key!r}{_kept(entry)}")
    if own is not None and (own.url, own.schema, own.role) != (wish.url, wish.schema, wish.role):
        raise ConfigError(
            f"tenant {wish.key!r} was added before, with another url, schema or role: give the "
            f"same ones, or `tenantsync tenants remove {wish.key} --drop` first"
        )
    return own


def _kept(entry: Entry) -> str:
    if entry.state is not State.REMOVED:
        return ""
    return (
        ", which was removed and whose data is kept: add that one again, or drop it with "
        f"`tenantsync tenants remove {entry.key} --drop`"
    )


def _find(connection: Connection, key: str) -> Entry | None:
    row = connection.execute(select(tenants).where(tenants.c.key == key)).mappings().one_or_none()
    return None if row is None else _entry(row)


def _move(connection: Connection, key: str, state: State, number: int) -> None:
    connection.execute(
        update(tenants).where(tenants.c.key == key).values(state=state.value, changed=number)
    )


def _columns(wish: Wish) -> dict[str, Any]:
    names: Iterable[str] = ("key", "id", "url", "schema", "role", "place", "made")
    return {name: getattr(wish, name) for name in names}


def _entry(row: RowMapping) -> Entry:
    values = {name: row[name] for name in row if name not in ("state", "changed")}
    return Entry(**values, state=State(row["state"]))
