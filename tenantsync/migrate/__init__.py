"""Migrations of tenants' places: bring each one to head, or tell where each one stands.

`runner` has what a program calls. `fleet` goes about many tenants with a `crew`, `mover` moves one,
`recording` writes revisions down so that they can be replayed, `scripts` knows how they follow from
each other, `survey` and `looks` see where all stand, and `report` says what became of each one.
"""

from tenantsync.migrate.crew import Progress
from tenantsync.migrate.fleet import Pace, Place, Planned
from tenantsync.migrate.moves import Kind, Move
from tenantsync.migrate.report import Report, Row, State
from tenantsync.migrate.revisions import Revision, history, revise
from tenantsync.migrate.runner import (
    check,
    downgrade,
    migration_places,
    plan,
    stamp,
    status,
    upgrade,
)
from tenantsync.migrate.selection import choose

__all__ = [
    "Kind",
    "Move",
    "Pace",
    "Place",
    "Planned",
    "Progress",
    "Report",
    "Revision",
    "Row",
    "State",
    "check",
    "choose",
    "downgrade",
    "history",
    "migration_places",
    "plan",
    "revise",
    "stamp",
    "status",
    "upgrade",
]
