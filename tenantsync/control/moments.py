"""Expressions that the control database evaluates itself: its clock, and tokens nobody repeats.

Leases and due times are compared between machines, so that only one clock may count.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from tenantsync.models import Timestamp

__all__ = ["NOW", "FreshToken", "Later"]


class Later(FunctionElement[datetime]):
    """The database's time when the statement began, so many seconds later; cut to milliseconds."""

    name = "later"
    type = Timestamp()
    inherit_cache = True


class FreshToken(FunctionElement[str]):
    """A random text that never comes twice."""

    name = "fresh_token"
    type = Text()
    inherit_cache = True


NOW: Final[ColumnElement[datetime]] = Later(0.0)
"""The database's time when the statement began."""


# Not `clock_timestamp()`: an index cannot be searched for what changes while it is searched. And
# cut, not rounded: what is due now must not be due half a millisecond later.
@compiles(Later, "postgresql")
def _later_on_postgres(element: Later, compiler: SQLCompiler, **options: object) -> str:
    seconds = compiler.process(element.clauses, **options)
    now = "date_trunc('milliseconds', statement_timestamp())"
    return f"({now} + make_interval(secs => {seconds}))"


@compiles(Later, "sqlite")
def _later_on_sqlite(element: Later, compiler: SQLCompiler, **options: object) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%.3f seconds', {seconds}))"


@compiles(FreshToken, "postgresql")
def _token_on_postgres(_element: FreshToken, _compiler: SQLCompiler, **_options: object) -> str:
    return "CAST(gen_random_uuid() AS TEXT)"


@compiles(FreshToken, "sqlite")
def _token_on_sqlite(_element: FreshToken, _compiler: SQLCompiler, **_options: object) -> str:
    return "lower(hex(randomblob(16)))"
