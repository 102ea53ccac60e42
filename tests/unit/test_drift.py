"""What reconciliation tells of itself: reports, and the numbers for metrics."""

import pytest

from tenantsync.metrics import PrometheusObserver
from tenantsync.sync.drift import Difference, DriftCounter, Report, State, TenantReport


def report(state=State.DONE, **changes):
    """Return what became of a tenant."""
    return TenantReport(tenant="acme", tenant_id="id-acme", state=state, **changes)


def test_numbers_are_summed_up_by_fixed_names():
    """Every name is there from the beginning, so that a rate can be made of it."""
    counter = DriftCounter()
    names = set(counter.counts())

    counter(report(added=2, changed=1))
    counter(report(State.HELD_BACK, changed=4, held_back=7))
    counter(report(State.REFUSED))

    counts = counter.counts()
    assert counts.keys() == names
    assert {name: count for name, count in counts.items() if count} == {
        "tenants_done": 1,
        "tenants_held_back": 1,
        "tenants_refused": 1,
        "people_added": 2,
        "people_changed": 5,
        "people_held_back": 7,
    }


def test_a_dry_run_is_not_counted():
    """The run that follows would count the same people again."""
    counter = DriftCounter()
    counter(report(changed=5, dry_run=True))

    assert not any(counter.counts().values())


def test_prometheus_shows_what_was_found():
    """As a counter, by what it was."""
    counter, observer = DriftCounter(), PrometheusObserver()
    observer.watch(drift=counter.counts)
    counter(report(removed=3))

    shown = observer.render().decode()

    assert 'tenantsync_reconcile_total{what="people_removed"} 3.0' in shown
    assert 'tenantsync_reconcile_total{what="tenants_done"} 1.0' in shown
    assert 'tenantsync_source_up{source="drift"} 1.0' in shown


@pytest.mark.parametrize("state", State)
def test_a_report_is_good_if_nothing_is_left_to_look_at(state):
    """A tenant that was left out on purpose is no failure."""
    good = state in (State.DONE, State.SKIPPED)

    assert report(state).ok is good
    assert Report([report(), report(state)]).ok is good
    assert sum(Report([report(), report(state)]).counts.values()) == 2


def test_a_difference_shows_nobody():
    """It may end in a log."""
    shown = repr(Difference(what="changed", sub="zoe", columns={"email": ("a@b", "c@d")}))

    assert "zoe" not in shown
    assert "a@b" not in shown
