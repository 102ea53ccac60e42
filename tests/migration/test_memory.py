"""What a run keeps of the tenants that it has been at: nothing, if no rows are wanted."""

import gc
import tracemalloc
from collections import Counter

import pytest

from tenantsync.migrate import Row, State, check, fleet, status, upgrade
from tenantsync.migrate.looks import Look
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Tenant

FEW, MANY, PORTION = 1000, 3000, 50
ISOLATION = DatabaseIsolation(None)


@pytest.fixture
def tenants(migrated_place, monkeypatch):
    """Give a fleet's worth of tenants with nothing to do; they share a place that is at head."""
    monkeypatch.setattr(fleet, "_AT_ONCE", PORTION)
    return [Tenant(f"id-{number}", f"t{number:05d}", migrated_place) for number in range(MANY)]


@pytest.mark.parametrize("command", [upgrade, status, check])
def test_nothing_is_kept_of_a_tenant_that_is_well(tenants, command):
    """At any moment there is a portion of visits and looks, and one row."""
    kinds = (Row, Look, fleet._Visit)
    most = Counter()

    def alive():
        return Counter(type(each) for each in gc.get_objects() if isinstance(each, kinds))

    gc.collect()
    before = alive()  # those of other tests

    def note(row, done, total):
        if done % (PORTION // 2 * 5) == 0:
            for kind, count in (alive() - before).items():
                most[kind] = max(most[kind], count)

    report = command(tenants, isolation=ISOLATION, keep_rows=False, on_progress=note)

    assert (report.rows, report.counts) == ((), {State.OK: MANY})
    assert most[Row] <= 2
    assert max(most[Look], most[fleet._Visit]) <= 3 * PORTION


@pytest.mark.parametrize("command", [upgrade, status])
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_peak_does_not_grow_with_the_fleet(tenants, command, jobs):
    """Three times as many tenants take no more memory, beside the tenants themselves."""

    def note(row, done, total):
        if done == 1:  # what reading the revisions took is gone by now
            tracemalloc.reset_peak()

    def peak_of(some):
        options = {"isolation": ISOLATION, "keep_rows": False, "jobs": jobs, "on_progress": note}
        tracemalloc.start()
        try:
            assert command(some, **options).ok
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of(tenants[:FEW])  # imports and caches
    few, many = peak_of(tenants[:FEW]), peak_of(tenants)

    # A pointer for each tenant is the copy of the list that was given. A row is ten times that.
    assert many - few < (MANY - FEW) * 8 + 80_000
