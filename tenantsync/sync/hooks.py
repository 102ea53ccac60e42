"""The application's own functions, called in the tenant's transaction after the merge."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from tenantsync.errors import ConfigError, HookFailed
from tenantsync.events import SYNC_TYPES, SYSTEM_TYPES, Event
from tenantsync.tenancy.sessions import bound_session
from tenantsync.tenants import Placement

__all__ = ["Hook", "Hooks", "bound_session", "run_hooks"]

Hook = Callable[[Event, Session], Any]
_HookT = TypeVar("_HookT", bound=Hook)

_EVERY: Final = "*"
_TYPES: Final = (*SYNC_TYPES, *SYSTEM_TYPES)


class Hooks:
    """Which functions are called for which events, in the order of their registration."""

    def __init__(self) -> None:
        self._registered: list[tuple[str, Hook]] = []

    def on(self, pattern: str) -> Callable[[_HookT], _HookT]:
        """Return a decorator that registers a function for a type of event.

        Args:
            pattern: A type (`"member.joined"`), all of a family (`"member.*"`), or all (`"*"`).

        Raises:
            ConfigError: The provider has no such type, or the function is a coroutine.
        """
        _check(pattern)

        def register(hook: _HookT) -> _HookT:
            if any(map(inspect.iscoroutinefunction, (hook, type(hook).__call__))):
                raise ConfigError(
                    f"hook {_name(hook)} is a coroutine: hooks run in the tenant's transaction, "
                    "which is blocking; write `def` instead of `async def`"
                )
            self._registered.append((pattern, hook))
            return hook

        return register

    def copy(self) -> "Hooks":
        """Return what may be added to without this one hearing of it."""
        made = Hooks()
        made._registered += self._registered
        return made

    def matching(self, event_type: str) -> tuple[Hook, ...]:
        """Return the functions to call for this type."""
        return tuple(hook for pattern, hook in self._registered if _matches(pattern, event_type))


def run_hooks(
    hooks: tuple[Hook, ...], event: Event, connection: Connection, placement: Placement
) -> None:
    """Call the hooks, one after the other, in one session.

    Raises:
        HookFailed: One of them raised, its statements failed, or it ended the transaction.
    """
    savepoint = connection.begin_nested()
    session = bound_session(connection, placement)
    try:
        for hook in hooks:
            try:
                _call(hook, event, session)
            # Whatever it raises, SystemExit included: a writer's thread must answer its senders.
            except BaseException as error:
                raise HookFailed(f"hook {_name(hook)} raised {type(error).__name__}") from error
        try:
            session.commit()
            # Our savepoint is gone if the hook ended the transaction behind the session's back.
            savepoint.commit()
        except SQLAlchemyError as error:
            raise HookFailed(
                f"the hooks for {event.type} broke the transaction: let them leave COMMIT and "
                "ROLLBACK to the session that they are given"
            ) from error
    finally:
        session.close()


def _call(hook: Hook, event: Event, session: Session) -> None:
    answer = hook(event, session)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the hook returned a coroutine, which nobody awaits")
    session.flush()


def _matches(pattern: str, event_type: str) -> bool:
    if pattern.endswith(".*"):
        return event_type.startswith(pattern[:-1])
    return pattern in (event_type, _EVERY)


def _check(pattern: str) -> None:
    if any(_matches(pattern, known) for known in _TYPES):
        return
    near = difflib.get_close_matches(pattern, _TYPES, n=1)
    hint = f'did you mean "{near[0]}"?' if near else 'use a type, "member.*" or "*"'
    raise ConfigError(f"the provider sends no event {pattern[:80]!r}: {hint}")


def _name(hook: Hook) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)
