"""The handler: who the tenant is, what is remembered of that, and what the caller is told."""

import asyncio
import gc
import warnings
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest
from guarding import ask, at_once, counts, ledger, make, people, told
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from tenantsync.errors import (
    ConfigError,
    TenantNotMigrated,
    TenantSuspended,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.events import SYNC_TYPES, Event
from tenantsync.models import Identity
from tenantsync.observe import Outcome, OutcomeCounter
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.resolver import ListedTenants, TenantResolver
from tenantsync.tenants import Placement, Tenant


@pytest.fixture
def counter():
    return OutcomeCounter()


# Column -> value of the row that the first event about a person makes, beside the defaults.
FIRST = {
    "subject.created": {"given_name": "Ann", "subject_type": "user"},
    "subject.updated": {"given_name": "Ann"},
    "subject.deactivated": {"is_active": False},
    "member.joined": {
        "membership_status": "active",
        "tenant_id": "acme",
        "tenant_roles": ["member"],
    },
    "member.left": {"membership_status": "left", "tenant_id": None, "app_role": None},
    "member.role_changed": {"membership_status": None, "tenant_roles": ["member"]},
    "member.suspended": {"membership_status": "suspended", "tenant_id": "acme"},
    "member.activated": {"membership_status": "active", "tenant_id": "acme"},
    "app_access.granted": {"has_app_access": True, "app_role": "editor", "family_name": "Lee"},
    "app_access.revoked": {"has_app_access": False, "app_role": None},
    "app_access.role_changed": {"app_role": "editor"},
}


DEFAULTS = {"is_active": True, "has_app_access": False, "tenant_roles": [], "groups": []}


def value_of(place, column):
    """Return one column of the only person, through the models."""
    engine = create_engine(place.url)
    with Session(engine.execution_options(schema_translate_map={None: place.schema})) as session:
        value = getattr(session.scalars(select(Identity)).one(), column)
    engine.dispose()
    return value


@pytest.mark.parametrize("kind", SYNC_TYPES)
def test_every_type_may_be_the_first_to_mention_a_person(migrated_place, counter, kind):
    """No event expects a row: each makes the one that the rules say, or is ignored."""
    with IdentitySyncHandler(
        migrated_place, default_app_access=False, observers=[counter]
    ) as handler:
        outcome = handler.handle_blocking(make(kind))

    if kind in FIRST:
        assert outcome is Outcome.APPLIED
        expected = {"email": "ann@example.test", **DEFAULTS, **FIRST[kind]}
        assert {name: value_of(migrated_place, name) for name in expected} == expected
        assert people(migrated_place) == ["ann"]
    elif kind == "subject.deleted":
        assert outcome is Outcome.APPLIED
        assert counts(migrated_place)["av_identities"] == 0
        assert counts(migrated_place)["av_identity_tombstones"] == 1
    else:
        assert outcome is Outcome.IGNORED
        assert set(counts(migrated_place).values()) == {0}


def test_one_engine_serves_a_single_database(migrated_place, counter):
    """The simplest handler: one engine of the application's own, for whichever tenant."""
    engine = create_engine(migrated_place.url)
    mine = Placement.of(engine, migrated_place.schema)
    with IdentitySyncHandler(mine, observers=[counter]) as handler:
        results = [
            handler.handle_blocking(make("member.joined", name, tenant=name)) for name in "abc"
        ]
        assert engine.pool.checkedout() == 0
    engine.dispose()

    assert results == [Outcome.APPLIED] * 3
    assert people(migrated_place) == ["a", "b", "c"]
    assert counter.counts()["applied"] == 3


def test_the_callers_engine_is_never_disposed(migrated_place):
    """Closing the handler closes what is its own; the application's pool stays."""
    engine = create_engine(migrated_place.url)
    with IdentitySyncHandler(Placement.of(engine, migrated_place.schema)) as handler:
        handler.handle_blocking(make("member.joined"))
    kept = engine.pool.checkedin()
    engine.dispose()

    assert kept == 1


@pytest.mark.parametrize("form", ["placement", "url", "tenant", "engine", "text"])
@pytest.mark.parametrize("color", ["blocking", "async"])
@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_a_function_tells_where_a_tenant_lives(migrated_place, form, color):
    """Blocking or async, from a tenant id to whatever names a place."""
    engine = create_engine(migrated_place.url)
    answer = {
        "placement": migrated_place,
        "url": migrated_place.url,
        "text": str(migrated_place.url),
        "tenant": Tenant("acme", "acme", migrated_place),
        "engine": engine,
    }[form]

    def find(tenant_id):
        return answer if tenant_id == "acme" else None

    async def find_later(tenant_id):
        await asyncio.sleep(0)
        return find(tenant_id)

    async def both(handler):
        first = await handler.handle(make("member.joined", "ann"))
        with pytest.raises(UnknownTenant):
            await handler.handle(make("member.joined", "ann", tenant="globex"))
        return first

    with IdentitySyncHandler(find if color == "blocking" else find_later) as handler:
        assert asyncio.run(both(handler)) is Outcome.APPLIED
    with IdentitySyncHandler(find if color == "blocking" else find_later) as handler:
        assert told(handler, make("member.joined", "bob")) is Outcome.APPLIED
        assert told(handler, make("member.joined", "bob", tenant="globex")) is UnknownTenant
    engine.dispose()

    assert people(migrated_place) == ["ann", "bob"]


def test_a_blocking_function_does_not_block_the_event_loop(migrated_place):
    """The look-up runs in a thread: it may wait for something that the loop does meanwhile."""
    entered: Future[None] = Future()
    answer: Future[Placement] = Future()

    def find(tenant_id):
        entered.set_result(None)
        return answer.result(timeout=10)

    async def run():
        task = asyncio.create_task(handler.handle(make("member.joined")))
        await asyncio.wrap_future(entered)
        answer.set_result(migrated_place)
        return await task

    with IdentitySyncHandler(find, observers=()) as handler:
        assert asyncio.run(run()) is Outcome.APPLIED


@pytest.mark.parametrize("color", ["blocking", "async"])
@pytest.mark.parametrize(
    "error", [RuntimeError("secret=hunter2"), KeyError("acme"), OSError("vault"), TimeoutError()]
)
def test_an_exception_means_unavailable_and_never_unknown(counter, color, error):
    """Who cannot be looked up is not nobody: the event is for later, and no secret is told."""

    def find(tenant_id):
        raise error

    async def find_later(tenant_id):
        raise error

    resolver = find if color == "blocking" else find_later
    with IdentitySyncHandler(resolver, observers=[counter]) as handler:
        with pytest.raises(TenantUnavailable) as caught:
            handler.handle_blocking(make("member.joined"))
        with pytest.raises(TenantUnavailable):
            asyncio.run(handler.handle(make("member.joined")))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is error
    assert counter.counts()["failed"] == 2
    assert "unknown_tenant" not in counter.reasons()


class Source:
    """A source whose tenants, and mood, the test changes."""

    def __init__(self, **tenants):
        self.tenants = tenants
        self.asked = []
        self.broken = False

    def find(self, tenant_id):
        self.asked.append(tenant_id)
        if self.broken:
            raise ConnectionError("the catalogue is down")
        return self.tenants.get(tenant_id)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def world(migrated_place):
    """A source with one tenant, a clock, and a handler that looks through both."""
    source, clock = Source(acme=Tenant("acme", "acme", migrated_place)), Clock()
    resolver = TenantResolver(source, ttl=30, negative_ttl=5, clock=clock)
    with IdentitySyncHandler(resolver, observers=()) as handler:
        yield SimpleNamespace(source=source, clock=clock, handler=handler, place=migrated_place)


def test_a_known_tenant_is_remembered_for_a_while(world):
    """One look-up serves thirty seconds; then the source is asked again."""
    for seconds in (0, 29.9, 0.2, 29):
        world.clock.now += seconds
        assert told(world.handler, make("member.joined")) is not UnknownTenant

    assert world.source.asked == ["acme", "acme"]


def test_an_unknown_tenant_is_remembered_for_a_shorter_while(world):
    """A tenant that was just added is found after five seconds."""
    assert told(world.handler, make("member.joined", tenant="new")) is UnknownTenant
    world.source.tenants["new"] = Tenant("new", "new", world.place)
    world.clock.now += 4.9
    assert told(world.handler, make("member.joined", tenant="new")) is UnknownTenant
    assert world.source.asked == ["new"]

    world.clock.now += 0.2
    assert told(world.handler, make("member.joined", tenant="new")) is Outcome.APPLIED


def test_during_an_outage_the_last_known_tenants_serve(world):
    """Who was ever found is still found; who never was is unavailable, and never unknown."""
    assert told(world.handler, make("member.joined", "ann")) is Outcome.APPLIED
    world.source.broken = True
    world.clock.now += 1_000_000

    assert told(world.handler, make("member.joined", "bob")) is Outcome.APPLIED
    assert told(world.handler, make("member.joined", tenant="new")) is TenantUnavailable
    world.source.broken = False
    assert told(world.handler, make("member.joined", tenant="new")) is UnknownTenant


def test_a_removed_tenant_is_not_brought_back_by_an_outage(world):
    """What the source once took back is not remembered as the last known."""
    told(world.handler, make("member.joined"))
    del world.source.tenants["acme"]
    world.clock.now += 31
    assert told(world.handler, make("member.joined")) is UnknownTenant
    world.source.broken = True
    world.clock.now += 31

    assert told(world.handler, make("member.joined")) is TenantUnavailable


def test_nothing_is_applied_to_a_suspended_tenant(world):
    """Neither through the cache, nor during an outage; after resuming the event is applied."""
    event = make("member.joined")
    tenant = world.source.tenants["acme"]
    world.source.tenants["acme"] = Tenant("acme", "acme", tenant.placement, suspended=True)
    assert told(world.handler, event) is TenantSuspended
    assert told(world.handler, event) is TenantSuspended
    world.source.broken = True
    world.clock.now += 31
    assert told(world.handler, event) is TenantSuspended
    assert set(counts(world.place).values()) == {0}

    world.source.broken = False
    world.source.tenants["acme"] = tenant
    assert told(world.handler, event) is Outcome.APPLIED


def test_an_event_that_names_no_tenant_is_of_an_unknown_one(world):
    """Nothing is looked up for it."""
    assert told(world.handler, make("member.joined", tenant=None)) is UnknownTenant
    assert told(world.handler, make("member.joined", tenant="")) is UnknownTenant
    assert world.source.asked == []


class AsyncEngine:
    """Stands for SQLAlchemy's class of this name, which needs an extra of its own to be made."""


def test_what_cannot_tell_where_tenants_live_is_refused_with_a_sentence():
    """An async engine, a number, nothing: the error says what to give instead."""
    for wrong in (AsyncEngine(), 7, None, ["sqlite:///a.db"]):
        with pytest.raises(ConfigError, match="give a blocking SQLAlchemy Engine"):
            IdentitySyncHandler(wrong)
    with pytest.raises(ConfigError, match="a AsyncEngine is no place"):
        Placement.of(AsyncEngine())


def test_a_function_that_answers_nonsense_is_unavailable_not_unknown():
    """A slip in the application's resolver must not make its tenants disappear."""
    with IdentitySyncHandler(lambda tenant_id: 7, observers=()) as handler:
        assert told(handler, make("member.joined")) is TenantUnavailable


def test_a_closed_handler_refuses(migrated_place):
    """What comes after the close is for the sender to try again; a second close is no error."""
    handler = IdentitySyncHandler(migrated_place, observers=())
    handler.handle_blocking(make("member.joined"))
    handler.close()
    handler.close()

    assert told(handler, make("member.joined")) is TenantUnavailable
    with pytest.raises(TenantUnavailable):
        asyncio.run(handler.handle(make("member.joined")))
    assert len(ledger(migrated_place)) == 1


def test_a_handler_that_is_never_closed_says_so(migrated_place):
    """Open engines that are thrown away are a forgotten close, and a warning."""
    handler = IdentitySyncHandler(migrated_place, observers=())
    handler.handle_blocking(make("member.joined"))
    registry = handler._registry
    handler._writer.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry.__del__()
    handler.close()
    del handler, registry
    gc.collect()

    assert [warning.category for warning in caught] == [ResourceWarning]


def test_closing_finishes_what_is_waiting(migrated_place):
    """Events that were accepted before the close are committed by it, not dropped."""

    async def run():
        handler = IdentitySyncHandler(migrated_place, observers=())
        tasks = [
            asyncio.create_task(handler.handle(make("member.joined", f"p{n}"))) for n in range(100)
        ]
        # The first look-up of a tenant goes to a thread; wait until all of them have.
        await asyncio.sleep(0)
        first = await tasks[0]
        await asyncio.to_thread(handler.close)
        rest = await asyncio.gather(*tasks[1:], return_exceptions=True)
        return [first, *rest]

    results = asyncio.run(run())

    applied = sum(result is Outcome.APPLIED for result in results)
    assert applied + sum(isinstance(result, TenantUnavailable) for result in results) == 100
    assert counts(migrated_place)["av_identities"] == applied


def test_duplicates_in_one_batch_and_across_batches(migrated_place):
    """An id counts once, whether its repetitions come together, at once from many, or later."""
    event = make("member.joined", id="e-1")

    async def together(handler):
        return await asyncio.gather(*(handler.handle(event) for _ in range(20)))

    with IdentitySyncHandler(migrated_place, observers=()) as handler:
        results = asyncio.run(together(handler))
        results += at_once([partial(told, handler, event)] * 20)
    with IdentitySyncHandler(migrated_place, observers=()) as another:
        results.append(told(another, event))

    assert sorted(results) == [Outcome.APPLIED] + [Outcome.DUPLICATE] * 40
    assert ledger(migrated_place) == ["e-1"]


def test_an_id_counts_for_its_tenant_alone(schema_places):
    """Two tenants may see one id; each has a ledger of its own."""
    places = dict(zip("ab", schema_places(2), strict=True))
    with IdentitySyncHandler(places.get, observers=()) as handler:
        results = [told(handler, make("member.joined", tenant=name, id="e-1")) for name in "abab"]

    assert results == [Outcome.APPLIED] * 2 + [Outcome.DUPLICATE] * 2


def test_a_sender_that_goes_away_loses_nothing(migrated_place):
    """A cancelled wait does not cancel the write, and disturbs nobody else's answer."""

    async def run(handler):
        first = asyncio.create_task(handler.handle(make("member.joined", "ann")))
        second = asyncio.create_task(handler.handle(make("member.joined", "bob")))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await second

    with IdentitySyncHandler(migrated_place, observers=()) as handler:
        handler.handle_blocking(make("member.joined", "cy"))  # the tenant is known from here on
        assert asyncio.run(run(handler)) is Outcome.APPLIED

    assert people(migrated_place) == ["ann", "bob", "cy"]


def test_observers_are_told_the_key_and_never_a_claim(migrated_place):
    """A delivery names the event, the tenant's key and the outcome."""
    deliveries = []
    tenants = ListedTenants([Tenant("acme", "acme_key", migrated_place)])
    with IdentitySyncHandler(tenants, observers=[deliveries.append]) as handler:
        told(handler, make("member.joined", id="e-1"))
        told(handler, make("invite.created", id="e-2"))
        told(handler, make("member.joined", id="e-3", tenant="nobody"))

    assert [(d.event_id, d.tenant, d.outcome, d.reason) for d in deliveries] == [
        ("e-1", "acme_key", Outcome.APPLIED, None),
        ("e-2", None, Outcome.IGNORED, "type"),
        ("e-3", None, Outcome.IGNORED, "unknown_tenant"),
    ]
    assert "example.test" not in repr(deliveries)


def test_a_table_that_comes_late_is_used_at_once(migrated_place):
    """Unmigrated, then migrated: the same handler goes on, with nothing remembered."""
    with IdentitySyncHandler(migrated_place, observers=()) as handler:
        ask(migrated_place, "ALTER TABLE {s}av_sync_events RENAME TO away")
        event: Event = make("member.joined")
        assert told(handler, event) is TenantNotMigrated
        name = f"{migrated_place.schema}.away" if migrated_place.is_postgres else "away"
        ask(migrated_place, f"ALTER TABLE {name} RENAME TO av_sync_events")
        assert told(handler, event) is Outcome.APPLIED
