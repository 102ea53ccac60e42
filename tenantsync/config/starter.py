"""The file that `tenantsync init` writes."""

import os
from pathlib import Path
from typing import Final

from tenantsync.errors import ConfigError

__all__ = ["STARTER", "write_starter"]

STARTER: Final = """\
# The configuration of tenantsync. Every key: docs/reference/config.md
#
# ${NAME} comes from the environment, percent-encoded inside a URL; $${ is a literal ${.
# Relative paths are relative to this file. A key that is not known is an error.

# Where the TenantSync object with your hooks lives; the command line loads it.
# app = "myapp.main:sync"

[authvital]
# The provider, without a path. This one is the local stand-in: `tenantsync emulate`.
host = "http://127.0.0.1:9400"
# Your application there. Events of any other application are answered and ignored.
application_id = "my-application"
# The client ids whose access tokens your application takes; sync.access() needs one at least.
# audience = ["my-browser-client"]
# The exact `iss` of these tokens, where it is not the host.
# issuer = "https://auth.example.com/"
# The MACHINE credential with which the provider is asked for the members of each tenant.
# client_id = "my-machine-client"
# client_secret = "${AUTHVITAL_CLIENT_SECRET}"
# Whether a new person may use the application before an event says so; false where seats are sold.
# default_app_access = true
# Seconds that an event's signed time may lie in the past, and in the future.
# max_age = 300
# max_skew = 60

[isolation]
# "database": a SQLite file or a PostgreSQL database for each tenant.
# "schema": a schema for each tenant in one PostgreSQL database.
# "single": one place for all tenants.
strategy = "database"
url = "sqlite:///tenants/{key}.db"
# strategy = "schema"
# url = "postgresql+psycopg://app:${DB_PASSWORD}@localhost/main"
# schema = "tenant_{key}"
# role = "tenant_{key}"            # every transaction takes this role
# migration_url = "postgresql+psycopg://owner:${OWNER_PASSWORD}@localhost/main"
# max_connections = 10             # per process and server

# One table per tenant. The key after "tenants." is yours: small letters, digits, underscores. The
# id is the provider's.
[tenants.acme]
id = "93ce0187-9290-491b-9f06-be209b3d2f92"

# [tenants.globex]
# id = "e2f80a4d-3bfa-4c0e-8a44-6ffa1a4f5c0e"
# url = "sqlite:///elsewhere/globex.db"    # a tenant may have its own url, schema or role

# Folders of Alembic revisions for tables of your own, migrated beside ours in each tenant.
# [migrations]
# locations = ["migrations/versions"]

# How often workers compare each tenant with the provider's list of its members, given client_id
# and client_secret; and the share of its people with access that one list may lock out.
# [reconcile]
# every = "6h"
# max_removal = 0.2
"""
"""A file that loads as it is: SQLite files, one tenant, and the local stand-in of the provider."""


def write_starter(path: str | os.PathLike[str]) -> Path:
    """Write a commented configuration file to start from, and return its absolute path.

    Raises:
        ConfigError: The file is there already, or cannot be written. Nothing is overwritten.
    """
    try:
        with Path(path).open("x", encoding="utf-8", newline="\n") as file:
            file.write(STARTER)
    except FileExistsError:
        raise ConfigError(
            f"{path}: is there already; edit it, or name another file with --path"
        ) from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: its folder does not exist; make it first") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return Path(path).absolute()
