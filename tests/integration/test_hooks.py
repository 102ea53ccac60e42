"""The application's functions in the tenant's transaction: when they run, what a failure costs."""

import asyncio
import re
from contextlib import suppress
from functools import partial

import pytest
from guarding import ask, at_once, ledger, make, people, told
from sqlalchemy import text

from tenantsync.errors import ConfigError, HookFailed, TenantNotIsolated
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hooks


@pytest.fixture
def place(migrated_place):
    """A migrated place with a table of the application's own."""
    ask(migrated_place, "CREATE TABLE {s}notes (event_id text)")
    return migrated_place


@pytest.fixture
def handler(place):
    """A handler for that place."""
    with IdentitySyncHandler(place, observers=()) as made:
        yield made


def note(event, session):
    session.execute(text("INSERT INTO notes VALUES (:id)"), {"id": event.id})


def notes(place):
    return sorted(row[0] for row in ask(place, "SELECT event_id FROM {s}notes"))


def test_a_hook_sees_the_row_after_the_merge(handler):
    """The person is in the session as the event left them, by the ready-made models."""

    @handler.on("member.joined")
    def look(event, session):
        person = session.get_one(Identity, event.sub)
        seen.append((person.email, person.membership_status, person.tenant_roles))

    seen = []
    handler.handle_blocking(make("member.joined", tenant_roles=["admin"]))

    assert seen == [("ann@example.test", "active", ["admin"])]


def test_what_a_hook_does_happens_once_per_event_id(place, handler):
    """The same delivery many times at once, and again later: one note."""
    handler.on("member.joined")(note)
    event = make("member.joined", id="e-1")

    results = at_once([partial(told, handler, event)] * 12)
    results.append(told(handler, event))

    assert sorted(results) == [Outcome.APPLIED] + [Outcome.DUPLICATE] * 12
    assert notes(place) == ["e-1"]


def test_a_failing_hook_rolls_back_its_event_only(place, handler):
    """Of many events that came together, one hook raises: the others are committed."""

    @handler.on("member.joined")
    def refuse_bob(event, session):
        note(event, session)
        if event.sub == "bob":
            raise ValueError(f"bad {event.data['email']}")

    subs = ["ann", "bob", "cy", "dee"]
    jobs = [
        partial(told, handler, make(kind, sub, id=f"{sub}/{kind}"))
        for kind in ("member.joined", "app_access.granted")
        for sub in subs
    ]
    results = dict(zip([(k, s) for k in "ja" for s in subs], at_once(jobs), strict=True))

    assert results.pop(("j", "bob")) is HookFailed
    assert set(results.values()) <= {Outcome.APPLIED, Outcome.STALE}
    assert "bob/member.joined" not in ledger(place)
    assert len(ledger(place)) == 7
    assert notes(place) == ["ann/member.joined", "cy/member.joined", "dee/member.joined"]


def test_a_failed_event_is_applied_once_its_hook_is_well(place, handler):
    """What was refused is not remembered as seen; the next delivery is the first."""

    @handler.on("member.joined")
    def moody(event, session):
        note(event, session)
        calls.append(event.id)
        if len(calls) == 1:
            raise RuntimeError("not today")

    calls = []
    event = make("member.joined", id="e-1")
    results = [told(handler, event), told(handler, event), told(handler, event)]

    assert results == [HookFailed, Outcome.APPLIED, Outcome.DUPLICATE]
    assert notes(place) == ["e-1"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_hook_raises_its_sender_gets_an_answer(place, handler, error):
    """Even an exception that would end a program only fails the event."""

    @handler.on("member.joined")
    def leave(event, session):
        raise error

    assert told(handler, make("member.joined")) is HookFailed
    assert told(handler, make("subject.created")) is Outcome.APPLIED
    assert len(ledger(place)) == 1


def test_the_message_of_a_failed_hook_repeats_nothing_personal(handler):
    """What the hook raised stays in the chain of causes."""

    @handler.on("member.joined")
    def chatty(event, session):
        raise ValueError(event.data["email"])

    with pytest.raises(HookFailed) as caught:
        handler.handle_blocking(make("member.joined"))

    assert "ann" not in str(caught.value)
    assert "chatty raised ValueError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_stale_event_reaches_hooks_marked_as_such(place, handler):
    """An older event that wins nothing is stale, and hooks are told."""
    handler.on("member.*")(lambda event, session: seen.append((event.type, event.stale)))
    seen = []
    results = [
        handler.handle_blocking(make("member.suspended", at=2_000_000_000_000)),
        handler.handle_blocking(make("member.suspended", at=1_999_999_999_999)),
        handler.handle_blocking(make("member.suspended", at=2_000_000_000_000, id="~")),
    ]

    assert results == [Outcome.APPLIED, Outcome.STALE, Outcome.APPLIED]
    assert seen == [("member.suspended", stale) for stale in (False, True, False)]


def test_an_event_of_a_deleted_person_does_not_reach_hooks(place, handler):
    """After the deletion nothing of that person is shown to hooks: no late join, no second end."""
    handler.on("*")(lambda event, session: seen.append(event.id))
    seen = []
    handler.handle_blocking(make("member.joined", id="join"))
    handler.handle_blocking(make("subject.deleted", at=2_000_000_000_000, id="delete"))
    handler.handle_blocking(make("member.joined", at=2_000_000_000_001, id="late"))
    handler.handle_blocking(make("subject.deleted", at=2_000_000_000_002, id="again"))
    handler.handle_blocking(make("license.assigned", at=2_000_000_000_003, id="licence"))

    assert seen == ["join", "delete"]
    assert people(place) == []
    assert ledger(place) == ["again", "delete", "join", "late", "licence"]


def test_a_deletion_reaches_hooks_and_the_row_is_gone_by_then(handler):
    """The hook of a deletion runs after it, in the same transaction."""
    handler.on("subject.deleted")(
        lambda event, session: seen.append(session.get(Identity, event.sub))
    )
    seen = []
    handler.handle_blocking(make("member.joined"))
    handler.handle_blocking(make("subject.deleted"))

    assert seen == [None]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("member.joined", ["member.joined"]),
        ("member.*", ["member.joined", "member.left"]),
        ("*", ["member.joined", "member.left", "invite.created", "license.assigned", "new.thing"]),
        ("invite.*", ["invite.created"]),
    ],
)
def test_patterns_choose_types(handler, pattern, expected):
    """One type, a family, or all of them, also types that nobody has heard of."""
    handler.on(pattern)(lambda event, session: seen.append(event.type))
    seen = []
    for kind in ("member.joined", "member.left", "invite.created", "license.assigned", "new.thing"):
        handler.handle_blocking(make(kind))

    assert seen == expected


def test_an_ignored_type_reaches_its_hook_once(place, handler):
    """Invitations write nothing, and are handed over in the tenant's transaction all the same."""
    handler.on("invite.*")(note)
    event = make("invite.accepted", id="e-1")
    results = [told(handler, event), told(handler, event)]

    assert results == [Outcome.IGNORED, Outcome.DUPLICATE]
    assert notes(place) == ["e-1"]
    assert people(place) == []


def test_hooks_run_in_the_order_of_their_registration_and_share_a_session(place, handler):
    """A later hook sees what an earlier one did; if the later one fails, neither happened."""
    handler.on("member.*")(note)

    @handler.on("*")
    def look(event, session):
        seen.append(session.scalar(text("SELECT count(*) FROM notes")))
        if event.sub == "bob":
            raise ValueError

    seen = []
    results = [told(handler, make("member.joined", sub)) for sub in ("ann", "bob")]

    assert results == [Outcome.APPLIED, HookFailed]
    assert seen == [1, 2]
    assert len(notes(place)) == 1


def test_commit_and_rollback_of_the_session_are_savepoints(place, handler):
    """What a hook commits still goes with the event if a later line fails."""

    @handler.on("member.joined")
    def hook(event, session):
        note(event, session)
        session.commit()
        session.execute(text("DELETE FROM notes"))
        session.rollback()
        with session.begin_nested():
            note(event, session)
        if event.sub == "bob":
            raise ValueError

    results = [told(handler, make("member.joined", sub, id=sub)) for sub in ("ann", "bob")]

    assert results == [Outcome.APPLIED, HookFailed]
    assert notes(place) == ["ann", "ann"]


def test_a_hook_may_close_its_session(place, handler):
    """Closing is no crime, and no commit either."""

    @handler.on("member.joined")
    def hook(event, session):
        note(event, session)
        session.commit()
        session.close()

    assert told(handler, make("member.joined", id="e-1")) is Outcome.APPLIED
    assert notes(place) == ["e-1"]


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
def test_a_hook_that_ends_the_transaction_itself_is_found_out(place, handler, word):
    """Raw COMMIT and ROLLBACK take the transaction away from under us: refused."""

    @handler.on("member.joined")
    def hook(event, session):
        cursor = session.connection().connection.cursor()
        cursor.execute(word)
        cursor.close()

    assert told(handler, make("member.joined", id="e-1")) in (HookFailed, TenantNotIsolated)
    assert told(handler, make("app_access.granted", "bob", id="e-2")) is Outcome.APPLIED
    assert ("e-1" in ledger(place)) is (word == "COMMIT")


def test_a_failed_statement_that_the_hook_swallows_is_no_success(place, handler):
    """PostgreSQL's transaction is lost after an error; the event must not be taken for applied."""

    @handler.on("member.joined")
    def hook(event, session):
        note(event, session)
        with suppress(Exception):
            session.execute(text("SELECT nonsense"))

    result = told(handler, make("member.joined", id="e-1"))

    kept = [] if place.is_postgres else ["e-1"]
    assert result is (HookFailed if place.is_postgres else Outcome.APPLIED)
    assert notes(place) == ledger(place) == kept


def test_a_coroutine_is_refused_as_a_hook(handler):
    """Nobody would await it, and its work would silently never happen."""

    async def plain(event, session): ...

    class Called:
        async def __call__(self, event, session): ...

    for hook in (plain, partial(plain), Called(), Called().__call__):
        with pytest.raises(ConfigError, match="instead of `async def`"):
            handler.on("member.joined")(hook)


def test_a_hook_that_returns_a_coroutine_fails_its_event(place, handler):
    """A plain function around a coroutine function shows itself only when it is called."""

    async def later(event, session): ...

    handler.on("member.joined")(partial(lambda hook, *given: hook(*given), later))

    assert told(handler, make("member.joined")) is HookFailed
    assert ledger(place) == []


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("member.join", 'did you mean "member.joined"'),
        ("Member.Joined", 'did you mean "member.joined"'),
        ("members.*", "the provider sends no event"),
        ("member", "the provider sends no event"),
        ("", 'use a type, "member.*" or "*"'),
        ("**", 'use a type, "member.*" or "*"'),
    ],
)
def test_a_pattern_that_can_never_match_is_refused(pattern, hint):
    """A hook with a slip in its pattern would never run."""
    with pytest.raises(ConfigError, match=re.escape(hint)):
        Hooks().on(pattern)


def test_the_decorator_gives_the_function_back(handler):
    """A hook stays callable under its own name."""

    @handler.on("member.joined")
    @handler.on("member.left")
    def hook(event, session):
        return 1

    assert hook(None, None) == 1


def test_hooks_run_behind_the_async_door_too(place, handler):
    """A hook is blocking and runs in a writer's thread; the event loop does not wait."""
    handler.on("member.joined")(note)

    async def every():
        events = [make("member.joined", f"p{n}", id=f"e-{n}") for n in range(9)]
        return await asyncio.gather(*map(handler.handle, events))

    assert set(asyncio.run(every())) == {Outcome.APPLIED}
    assert notes(place) == [f"e-{n}" for n in range(9)]


def test_hooks_are_copied_and_go_apart():
    """A copy has what was registered before; what comes later is heard by one of the two."""
    hooks = Hooks()
    hooks.on("member.joined")(note)
    copied = hooks.copy()
    hooks.on("member.left")(note)
    copied.on("*")(note)

    assert (hooks.matching("member.joined"), hooks.matching("member.left")) == ((note,), (note,))
    assert copied.matching("member.joined") == (note, note)
    assert copied.matching("member.left") == (note,)
