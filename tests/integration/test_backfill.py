"""The first reconciliation of a big tenant, in a process of its own: its memory, and its death."""

import pytest
from backfilling import TENANT, crowded, run
from sqlalchemy import func, select

from tenantsync.control.database import ControlDatabase
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.models import Identity
from tenantsync.tenancy.registry import EngineRegistry

FEW, MANY, ALL = 2_000, 12_000, 100_000
MOST = 200_000_000
"""Bytes that a tenant of 100,000 people may take."""


def count(place):
    """Return how many people the place has."""
    with EngineRegistry() as registry, registry.connect(place) as connection:
        translated = connection.execution_options(schema_translate_map={None: place.schema})
        return translated.scalar(select(func.count()).select_from(Identity))


def snapshot(control):
    """Return when the tenant's list was last believed."""
    with ControlDatabase(f"sqlite:///{control}") as database:
        return Reconciliations(database).previous(TENANT)


def test_a_hundred_thousand_people_fit_into_200_megabytes(migrated_place, tmp_path):
    """By what ten thousand more take; tests/benchmarks/reconcile.py measures it in full."""
    peaks = []
    for number, people in enumerate((FEW, MANY)):
        with crowded(people) as authvital:
            told = run(authvital, migrated_place, tmp_path / f"{number}.db")
        assert (told["state"], told["added"]) == ("done", people - (number and FEW))
        peaks.append(told["peak"])

    few, many = peaks
    each = max(0, many - few) / (MANY - FEW)
    assert many + each * (ALL - MANY) < MOST


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_backfill_that_was_killed_is_done_by_the_next_one(moment, migrated_place, tmp_path):
    """What was committed stays and is not done again; half a run counts for nothing."""
    control = tmp_path / "control.db"
    with crowded(600) as authvital:
        assert run(authvital, migrated_place, control, killed_at=moment) is None
        survived = count(migrated_place)
        assert survived == 250 * (moment // 2)
        assert snapshot(control) is None

        told = run(authvital, migrated_place, control)

    assert (told["state"], told["added"], told["unchanged"]) == ("done", 600 - survived, survived)
    assert count(migrated_place) == 600
    assert snapshot(control) is not None
