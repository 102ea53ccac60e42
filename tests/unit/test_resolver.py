"""The resolver by itself: what is remembered, in both colours; tests/integration has the rest."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from tenantsync.errors import (
    ConfigError,
    TenantSuspended,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.tenancy.resolver import AnyTenant, ListedTenants, TenantResolver
from tenantsync.tenants import Placement, Tenant

PLACE = Placement.of("sqlite:///a.db")
ACME = Tenant("acme-id", "acme", PLACE)


class Source:
    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def find(self, tenant_id):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class AsyncSource(Source):
    async def find(self, tenant_id):
        return super().find(tenant_id)


@pytest.fixture(params=["blocking", "async"])
def ask(request):
    """Ask a resolver in one of its colours."""

    def resolve(resolver, tenant_id="acme-id"):
        if request.param == "blocking":
            return resolver.resolve_blocking(tenant_id)
        return asyncio.run(resolver.resolve(tenant_id))

    return resolve


@pytest.fixture(params=[Source, AsyncSource])
def kind(request):
    return request.param


def test_every_colour_of_source_serves_every_colour_of_caller(ask, kind):
    """A blocking source behind an async door, and the other way round."""
    source = kind(ACME)
    resolver = TenantResolver(source)

    assert [ask(resolver), ask(resolver)] == [ACME, ACME]
    assert source.asked == 1
    assert resolver.remembered("acme-id") is ACME


def test_nobody_is_remembered_too(ask, kind):
    """A stranger's second event costs no second look-up."""
    source = kind(None)
    resolver = TenantResolver(source)
    for _ in range(2):
        with pytest.raises(UnknownTenant):
            ask(resolver)

    assert source.asked == 1
    with pytest.raises(UnknownTenant):
        resolver.remembered("acme-id")


def test_a_source_that_fails_is_asked_again_every_time(ask, kind):
    """An outage is not remembered, and its message repeats nothing of the error."""
    source = kind(OSError("password=hunter2"))
    resolver = TenantResolver(source)
    for _ in range(2):
        with pytest.raises(TenantUnavailable, match="could not be looked up: OSError") as caught:
            ask(resolver)
        assert "hunter2" not in str(caught.value)
    source.answer = ACME

    assert ask(resolver) is ACME
    assert source.asked == 3


def test_an_unavailable_source_may_say_why(ask, kind):
    """A message of tenantsync's own errors is safe to repeat."""
    resolver = TenantResolver(kind(TenantUnavailable("the vault is sealed")))

    with pytest.raises(TenantUnavailable, match="the vault is sealed"):
        ask(resolver)


def test_a_source_that_raises_unknown_is_still_only_unable_to_say(ask, kind):
    """None is how a source says that there is no such tenant; every exception is an outage."""
    with pytest.raises(TenantUnavailable):
        ask(TenantResolver(kind(UnknownTenant("none"))))


def test_a_source_that_answers_nonsense_is_unable_to_say(ask, kind):
    """A slip in the application's source must not make its tenants disappear, nor be remembered."""
    source = kind("sqlite:///a.db")
    resolver = TenantResolver(source)
    with pytest.raises(TenantUnavailable, match="TypeError"):
        ask(resolver)
    source.answer = ACME

    assert ask(resolver) is ACME


def test_what_is_forgotten_is_looked_up_anew_and_still_known_in_an_outage(ask, kind):
    """Forgetting empties the cache, not the memory for outages."""
    source = kind(ACME)
    resolver = TenantResolver(source)
    ask(resolver)
    resolver.forget("acme-id")
    assert resolver.remembered("acme-id") is None
    source.answer = OSError()

    assert ask(resolver) is ACME
    assert source.asked == 2


@pytest.mark.parametrize("answer", [None, ACME])
def test_what_was_found_before_a_tenant_was_forgotten_is_not_remembered(ask, kind, answer):
    """A tenant is registered while an event looks it up: the next event must find it."""

    class Registering(kind):
        def find(self, tenant_id):
            if not self.asked:
                resolver.forget(tenant_id)
            return super().find(tenant_id)

    source = Registering(answer)
    resolver = TenantResolver(source)
    with suppress(UnknownTenant):
        ask(resolver)
    source.answer = Tenant("acme-id", "moved", PLACE)

    assert ask(resolver).key == "moved"
    assert ask(resolver).key == "moved"
    assert source.asked == 2


def test_a_suspended_tenant_is_never_given_out(ask, kind):
    """Neither fresh nor from the memory."""
    resolver = TenantResolver(kind(Tenant("acme-id", "acme", PLACE, suspended=True)))
    for _ in range(2):
        with pytest.raises(TenantSuspended, match="acme"):
            ask(resolver)


@pytest.mark.parametrize("tenant_id", [None, "", "a" * 256, "ä" * 128, "\ud800" * 86])
def test_an_id_that_no_tenant_can_have_is_not_looked_up(ask, kind, tenant_id):
    """Nothing, and more than 255 bytes of UTF-8: unknown, not asked for, not remembered."""
    source = kind(ACME)
    resolver = TenantResolver(source)
    with pytest.raises(UnknownTenant):
        ask(resolver, tenant_id)

    assert source.asked == 0
    assert not resolver._missing


def test_strangers_cannot_fill_the_memory(kind):
    """However many ids are made up, only so many are remembered."""
    resolver = TenantResolver(kind(None))
    for number in range(21_000):
        with pytest.raises(UnknownTenant):
            resolver._remember(f"stranger-{number}", None, 0)

    assert len(resolver._missing) <= 20_000


def test_a_list_of_tenants_has_no_doubles():
    """Two tenants with one id or one key are a mistake in the list."""
    for other in (Tenant("acme-id", "b", PLACE), Tenant("b", "acme", PLACE)):
        with pytest.raises(ConfigError, match="another tenant"):
            ListedTenants([ACME, other])
    assert ListedTenants([ACME]).find("acme-id") is ACME
    assert ListedTenants([ACME]).find("ACME-ID") is None


def test_any_tenant_is_in_the_one_place():
    """Whoever the event names lives there."""
    assert AnyTenant(PLACE).find("x") == Tenant("x", "any", PLACE)


class Hanging(Source):
    """A source that hangs from its second look-up on, for as long as a test wants."""

    def __init__(self, answer):
        super().__init__(answer)
        self.gate = threading.Event()

    def find(self, tenant_id):
        found = super().find(tenant_id)
        if self.asked > 1:
            assert self.gate.wait(30)
        return found


class AsyncHanging(Source):
    """The same as a coroutine, which hangs for good."""

    async def find(self, tenant_id):
        found = super().find(tenant_id)
        if self.asked > 1:
            await asyncio.Event().wait()
        return found

    gate = threading.Event()


@pytest.mark.parametrize("kind", [Hanging, AsyncHanging])
def test_a_source_that_hangs_keeps_nobody_waiting(kind):
    """Who is known is served as last known, at once from the second time on; others hear of it."""
    source, now = kind(ACME), [0.0]
    resolver = TenantResolver(source, patience=0.02, hurry=0.01, clock=lambda: now[0])

    async def main():
        assert await resolver.resolve("acme-id") is ACME
        now[0] = 31.0
        for _ in range(5):
            assert await resolver.resolve("acme-id") is ACME
        asked = source.asked
        with pytest.raises(TenantUnavailable, match="TimeoutError"):
            await resolver.resolve("new-id")
        now[0] += 6.0
        assert await resolver.resolve("acme-id") is ACME
        return asked

    try:
        asked = asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        source.gate.set()
    assert asked == 2
    assert source.asked == 4


def test_look_ups_that_hang_take_no_thread_of_the_event_loop():
    """The application has other uses for those, and they are few."""
    source = Hanging(ACME)
    resolver = TenantResolver(source, patience=0.01, hurry=0.01)

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await resolver.resolve("acme-id")
        answers = await asyncio.gather(
            *(resolver.resolve(f"new-{number}") for number in range(300)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {TenantUnavailable}
        assert any("look-ups are under way" in str(answer) for answer in answers)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 30) == 7

    try:
        asyncio.run(main())
    finally:
        source.gate.set()


def test_a_tenant_that_is_to_be_looked_up_anew_is_so_after_a_slow_look_up():
    """It was suspended, say: that must not wait until the source is thought quick again."""
    source = Hanging(ACME)
    resolver = TenantResolver(source, hurry=0.01)

    async def main():
        await resolver.resolve("acme-id")
        resolver.forget("acme-id")
        assert await resolver.resolve("acme-id") is ACME
        source.gate.set()
        source.answer = replace(ACME, suspended=True)
        resolver._hurry = 30.0
        resolver.forget("acme-id")
        with pytest.raises(TenantSuspended):
            await resolver.resolve("acme-id")

    asyncio.run(main())


def test_closing_ends_the_threads_that_ask():
    """None is left behind, and whoever resolves all the same is answered."""
    resolver = TenantResolver(Source(ACME))
    before = set(threading.enumerate())
    asyncio.run(resolver.resolve("acme-id"))
    asking = set(threading.enumerate()) - before
    resolver.forget("acme-id")
    resolver.close()
    for thread in asking:
        thread.join(30)

    assert asking
    assert not any(thread.is_alive() for thread in asking)
    assert asyncio.run(resolver.resolve("acme-id")) == ACME
    resolver.close()
