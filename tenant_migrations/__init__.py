"""How a tenant's tables are made and changed: Alembic's environment and our revisions.

Run through `tenantsync.migrate`, which gives `env.py` a connection that is in the tenant's place.
"""
