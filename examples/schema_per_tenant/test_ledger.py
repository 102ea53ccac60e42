"""The ledger's own tests: `pytest` in this folder, with SQLite files in place of schemas.

`pytest --tenantsync-database-url=postgresql+psycopg://...` runs them on PostgreSQL.
"""

from ledger import Account
from sqlalchemy import select

from tenantsync.kit import TenantDatabases
from tenantsync.testing.courier import AuthVital


def test_each_tenant_has_its_own_accounts(
    authvital: AuthVital, tenant_databases: TenantDatabases
) -> None:
    """The same person in two tenants has two accounts, which know nothing of each other."""
    for tenant, address in (("acme", "ann@acme.test"), ("globex", "ann@globex.test")):
        authvital.deliver("member.joined", tenant=tenant, sub="ann", email=address)
        authvital.deliver("member.joined", tenant=tenant, sub="ann", email=address)

    for tenant in ("acme", "globex"):
        with tenant_databases.session(tenant) as session:
            assert session.scalars(select(Account.label)).all() == [f"ann@{tenant}.test"]
