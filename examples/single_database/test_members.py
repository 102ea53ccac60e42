"""The members' own tests: `pytest` in this folder."""

from members import Identity, Visit
from sqlalchemy import select

from tenantsync.kit import TenantDatabases
from tenantsync.testing.courier import AuthVital


def test_one_row_for_a_person_of_two_tenants(
    authvital: AuthVital, tenant_databases: TenantDatabases
) -> None:
    """The row has the latest tenant; what must be told apart says whose it is."""
    authvital.deliver("member.joined", tenant="acme", sub="ann")
    authvital.deliver("member.joined", tenant="somebody-new", sub="ann")

    with tenant_databases.session("acme") as session:
        assert session.scalars(select(Identity.tenant_id)).all() == ["somebody-new"]
        visited = session.scalars(select(Visit.tenant_id).order_by(Visit.id)).all()
        assert visited == [authvital.tenant_id("acme"), "somebody-new"]
