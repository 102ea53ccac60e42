"""The inbox reads indexes: no call's cost depends on how many events wait."""

import json
from contextlib import contextmanager

import pytest
from sqlalchemy import event, text, update

from tenantsync.control.database import ControlDatabase
from tenantsync.control.denials import Denials
from tenantsync.control.inbox import Arrival, Inbox, Settlement
from tenantsync.control.moments import Later
from tenantsync.control.tables import inbox as events
from tenantsync.migrate.control import upgrade_control

WAITING = 50_000
LANES = 2_000


def arrivals(names, tenant_id=None):
    return [
        Arrival(
            tenant_id=tenant_id or f"tenant-{name}",
            event_id=f"event-{name}",
            type="member.joined",
            subject=f"person-{name}",
            timestamp=1,
            body=b"{}",
            signed_at=None,
            door="direct",
            reason="unavailable",
        )
        for name in names
    ]


@pytest.fixture
def inbox(database_url):
    """Many lanes, and one with very many events."""
    with ControlDatabase(database_url) as control:
        upgrade_control(control)
        made = Inbox(control)
        for start in range(0, WAITING, 10_000):
            made.park(arrivals(range(start, start + 10_000), "bad"))
        made.park(arrivals(range(LANES)))
        with control.write() as connection:
            if connection.dialect.name == "postgresql":  # it does so by itself, sooner or later
                connection.execute(text("ANALYZE"))
        yield made


@contextmanager
def heard(inbox):
    """Give the statements that are executed meanwhile."""
    statements = []
    engine = inbox.database._engine

    def hear(_connection, _cursor, statement, parameters, _context, many):
        assert not many or engine.dialect.name == "sqlite"
        statements.append((statement, parameters[0] if many else parameters))

    event.listen(engine, "before_cursor_execute", hear)
    yield statements
    event.remove(engine, "before_cursor_execute", hear)


def plan(inbox, statement, parameters):
    """Return what the database would read: which tables whole, which indexes, sorted or not."""
    with inbox.database.read() as connection:
        if connection.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [row.detail for row in rows if "wanted" not in row.detail]
        found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        made = found.scalar_one()
    return list(nodes((made if isinstance(made, list) else json.loads(made))[0]["Plan"]))


def nodes(found):
    """Return the steps of PostgreSQL's plan that read a table, in SQLite's words, and sorts."""
    kind, table = found["Node Type"], found.get("Relation Name")
    if "Scan" in kind and table is not None:
        name = found.get("Index Name")
        yield f"SEARCH {table} USING INDEX {name}" if "Seq" not in kind else f"SCAN {table}"
    elif kind == "Bitmap Index Scan":
        yield f"INDEX {found['Index Name']}"
    elif "Sort" in kind and found["Plan Rows"] > 1000:
        yield "USE TEMP B-TREE FOR ORDER BY"
    for child in found.get("Plans", ()):
        yield from nodes(child)


def drain(inbox):
    lane = inbox.claim("me")
    entries = inbox.take(lane)
    inbox.settle(lane, [Settlement(number=entry.number, outcome="applied") for entry in entries])
    inbox.renew(lane)
    inbox.release(lane)
    return lane, entries


def test_nothing_that_is_done_for_an_event_reads_all_of_them(inbox):
    """Parking, draining, asking and erasing search indexes, with 50,000 events in one lane."""
    inbox.wake(["bad"])
    with heard(inbox) as statements:
        claimed = inbox.claim("me", tenant_id="bad")
        inbox.release(claimed)
        lane, entries = drain(inbox)
        inbox.park(arrivals(range(WAITING, WAITING + 128), "bad"))
        inbox.park(arrivals(range(100)) + arrivals(range(LANES, LANES + 20)))
        Denials(inbox.database, {"member.left"}).waiting("bad", "person-77")
        inbox.erase("bad", "person-40000")
        inbox.retry(numbers=[49_000])
        inbox.totals()
        inbox.lanes()

    assert len(entries) == (128 if lane.tenant_id == "bad" else 1)
    plans = {
        statement: plan(inbox, statement, parameters)
        for statement, parameters in statements
        if "inbox" in statement or "lanes" in statement
    }
    for statement, steps in plans.items():
        assert not [step for step in steps if step.startswith("SCAN inbox")], statement
        assert not [step for step in steps if "ix_inbox_settled" in step], statement
        if "ORDER BY inbox" in statement:
            assert not [step for step in steps if "TEMP B-TREE" in step], statement


def test_a_claim_reads_one_entry_of_one_index(inbox):
    """The lane longest due is found by the index of lanes, and no event is looked at."""
    with heard(inbox) as statements:
        inbox.claim("me")

    (claim,) = [one for one in statements if "UPDATE lanes" in one[0]]
    steps = plan(inbox, *claim)
    assert any("ix_lanes_due_at" in step for step in steps)
    assert not [step for step in steps if "inbox" in step or step.startswith("SCAN lanes")]


def test_a_batch_is_read_by_the_index_of_what_is_due(inbox):
    """Taking reads as many entries as it returns, in the order of the index."""
    lane = inbox.claim("me", tenant_id="bad")
    with heard(inbox) as statements:
        assert len(inbox.take(lane)) == 128

    (take,) = [one for one in statements if "FROM inbox" in one[0]]
    steps = plan(inbox, *take)
    assert any("ix_inbox_due" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or step.startswith("SCAN")]


def test_pruning_reads_only_what_is_old_enough(inbox):
    """Each kind of what is too old has an index; the many that wait are not looked through."""
    inbox.discard(numbers=range(1, 5))
    with heard(inbox) as statements:
        inbox.prune(bodies=1.0, ids=1.0, quarantine=1.0)

    for statement, parameters in statements:
        steps = plan(inbox, statement, parameters) if "inbox" in statement else []
        assert not [step for step in steps if step.startswith("SCAN inbox")], statement


def test_what_waited_too_long_is_found_lane_by_lane(inbox):
    """One look at the oldest of each lane, then only at those that have one that is too old."""
    old = [f"tenant-{name}" for name in range(3)]
    with inbox.database.write() as connection:
        late = events.c.tenant_id.in_(old)
        connection.execute(update(events).where(late).values(received_at=Later(-31 * 86400.0)))
    with heard(inbox) as statements:
        pruned = inbox.prune(bodies=1e9, ids=1e9, quarantine=1e9)

    assert pruned.expired == 3
    reads = [one for one in statements if one[0].startswith("SELECT") and "FROM inbox" in one[0]]
    plans = [plan(inbox, *one) for one in reads]
    assert not [step for steps in plans for step in steps if step.startswith("SCAN inbox")]
    sent_back, oldest, *lanes = [" ".join(steps) for steps in plans[:5]]
    assert "ix_inbox_settled" in sent_back
    assert "ix_inbox_waiting" in oldest
    assert len(lanes) == 3
    assert all("ix_inbox_waiting" in steps or "ix_inbox_due" in steps for steps in lanes)
