"""The databases of the benchmark: one place by the real migration, the others copied from it."""

import shutil
import sqlite3
from pathlib import Path

import psycopg
from workload import APPLICATION, tenant_id

from tenantsync import TenantSync
from tenantsync.migrate import upgrade

_MODEL = "t0"
_AT_ONCE = 50
_TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'
"""
_FOREIGN_KEYS = """
SELECT format('ALTER TABLE %%I ADD CONSTRAINT %%I %%s',
    (SELECT relname FROM pg_class WHERE oid = conrelid), conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = %s::regnamespace AND contype = 'f'
"""


def make(folder: Path, tenants: int, *, host: str, url: str | None, max_engines: int) -> Path:
    """Make the places and return the path of the configuration that names them.

    Args:
        folder: Where the configuration goes, and SQLite files if there is no URL.
        tenants: How many.
        host: Where the JWKS is served.
        url: The PostgreSQL database whose schemas are the places.
        max_engines: How many SQLite files may be open at once.
    """
    folder.mkdir(parents=True)
    config = folder / "tenantsync.toml"
    if url is None:
        isolation = f'strategy = "database"\nurl = "sqlite:///{folder}/{{key}}.db"\n'
    else:
        isolation = f'strategy = "schema"\nurl = "{url}"\n'
    lines = [
        f'[authvital]\nhost = "{host}"\napplication_id = "{APPLICATION}"\nmax_age = 86400\n',
        f"[isolation]\n{isolation}max_engines = {max_engines}\n",
        *(f'[tenants.t{index}]\nid = "{tenant_id(index)}"\n' for index in range(tenants)),
    ]
    config.write_text("\n".join(lines))
    with TenantSync.from_toml(config) as sync:
        report = upgrade(sync.tenants[:1], isolation=sync.isolation)
        assert report.ok, report
    keys = [f"t{index}" for index in range(1, tenants)]
    if url is None:
        _copy_files(folder, keys)
    else:
        _copy_schemas(url.replace("postgresql+psycopg", "postgresql"), keys)
    return config


def _copy_files(folder: Path, keys: list[str]) -> None:
    model = folder / f"{_MODEL}.db"
    connection = sqlite3.connect(model)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    connection.close()
    for key in keys:
        shutil.copyfile(model, folder / f"{key}.db")


def _copy_schemas(url: str, keys: list[str]) -> None:
    model = f"tenant_{_MODEL}"
    with psycopg.connect(url) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(f"SET search_path = {model}")
        tables = [name for (name,) in connection.execute(_TABLES, (model,))]
        foreign_keys = [statement for (statement,) in connection.execute(_FOREIGN_KEYS, (model,))]
        connection.commit()
        for start in range(0, len(keys), _AT_ONCE):
            for key in keys[start : start + _AT_ONCE]:
                schema = f"tenant_{key}"
                made = [f"CREATE SCHEMA {schema}", f"SET LOCAL search_path = {schema}"]
                made += [f"CREATE TABLE {t} (LIKE {model}.{t} INCLUDING ALL)" for t in tables]
                # One statement each way: 17 relations a schema, and 1,000 schemas to make.
                connection.execute(";".join([*made, *foreign_keys]))
            connection.commit()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
