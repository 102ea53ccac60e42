"""What a report of migrations says, and what it never says."""

import pytest
from alembic.util import CommandError
from sqlalchemy.exc import StatementError

from tenantsync.errors import MigrationFailed, TenantNotIsolated
from tenantsync.migrate import Report, Row, State
from tenantsync.migrate.report import Stopped, sentence_about

GOOD = Row("acme", None, "tenantsync_0001", State.UPGRADED, 0.1)
BAD = Row("globex", "tenantsync_0001", "tenantsync_0001", State.BEHIND, 0.1)


@pytest.mark.parametrize(("state", "ok"), [(state, state in ("ok", "upgraded")) for state in State])
def test_only_places_at_head_are_ok(state, ok):
    """`ok` and `upgraded` mean head; everything else is for somebody to look at."""
    row = Row("acme", None, None, state, 0.1)

    assert row.ok is ok
    assert Report((), (GOOD, row)).ok is ok


def test_check_raises_for_the_first_that_is_not():
    """The error carries the tenant's key and revision."""
    Report((), (GOOD,)).check()

    with pytest.raises(MigrationFailed, match="'globex' at tenantsync_0001: it is behind") as info:
        Report((), (GOOD, BAD)).check()

    assert (info.value.tenant, info.value.revision) == ("globex", "tenantsync_0001")


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
