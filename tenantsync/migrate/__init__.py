"""Migrations of tenants' places: bring each one to head, or tell where each one stands.

`runner` visits the tenants, `places` makes and finds where they live, `scripts` holds what Alembic
needs to be told, and `report` says what became of each one.
"""

from tenantsync.migrate.report import Report, Row, State
from tenantsync.migrate.runner import Place, Progress, migration_places, status, upgrade

__all__ = ["Place", "Progress", "Report", "Row", "State", "migration_places", "status", "upgrade"]
