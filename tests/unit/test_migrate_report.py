"""What a report of migrations says, and what it never says."""

import pickle

import pytest
from alembic.util import CommandError
from sqlalchemy.exc import StatementError

from tenantsync.errors import MigrationFailed, TenantNotIsolated
from tenantsync.migrate import Report, Row, State
from tenantsync.migrate.report import Stopped, sentence_about

GOOD = Row("acme", None, "tenantsync_0001", State.UPGRADED, 0.1)
BAD = Row("globex", "tenantsync_0001", "tenantsync_0001", State.BEHIND, 0.1)


WELL = ("ok", "upgraded", "downgraded", "stamped", "skipped")


@pytest.mark.parametrize(("state", "ok"), [(state, state in WELL) for state in State])
def test_only_places_that_are_where_they_should_be_are_ok(state, ok):
    """What was done, or is left to another run, is well; everything else is for somebody."""
    row = Row("acme", None, None, state, 0.1)

    assert row.ok is ok
    assert Report((), (GOOD, row)).ok is ok


def test_check_raises_for_the_first_that_is_not():
    """The error carries the tenant's key and revision."""
    Report((), (GOOD,)).check()

    with pytest.raises(MigrationFailed, match="'globex' at tenantsync_0001: it is behind") as info:
        Report((), (GOOD, BAD)).check()

    assert (info.value.tenant, info.value.revision) == ("globex", "tenantsync_0001")


def test_a_report_of_a_run_that_was_stopped_is_not_ok():
    """Tenants that were never begun are nowhere near head, although none of them failed."""
    assert not Report((), (GOOD,), left=1, stopped="2 tenants failed").ok


def test_check_raises_for_a_tenant_that_another_run_has():
    """Who goes on after `check` may rely on head; a tenant that was skipped may not be there."""
    row = Row("acme", None, None, State.SKIPPED, 0.1, "another run is migrating it")

    with pytest.raises(MigrationFailed, match="another run"):
        Report((), (row,)).check()


def test_why_a_tenant_stopped_survives_the_way_between_processes():
    """Everything of it arrives in another process."""
    sent = Stopped(State.LOCKED, "wait", ("1",), everywhere=True)

    arrived = pickle.loads(pickle.dumps(sent))  # noqa: S301 - our own

    assert (arrived.state, arrived.reason, arrived.at, arrived.everywhere) == (
        State.LOCKED, "wait", ("1",), True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Stopped(State.FAILED, "look there"), "look there"),
        (TenantNotIsolated("it is elsewhere"), "it is elsewhere"),
        (CommandError("no such revision"), "no such revision"),
        (ValueError("one line\nand another"), "ValueError: one line"),
        (ValueError(), "ValueError"),
        (
            StatementError("m", "SELECT 1", {"email": "ada@example.com"}, TypeError("no")),
            "TypeError: no",
        ),
    ],
)
def test_errors_are_one_line_without_a_statement(error, sentence):
    """Neither the statement nor its parameters get into the report."""
    assert sentence_about(error) == sentence
