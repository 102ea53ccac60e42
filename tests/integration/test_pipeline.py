"""Many statements in one round trip: whose error it was, and what a dead server looks like."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantsync.sync.pipeline import Pipeline, StatementFailed, text_array
from tenantsync.tenancy.engines import ServerSilent

TEXTS = st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))


@pytest.fixture
def connection(postgres) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection that is not in autocommit."""
    url = postgres.create_database().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        yield connection


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(texts=TEXTS)
def test_texts_arrive_as_they_were_sent(connection, texts):
    """Quotes, backslashes, braces, commas and the word NULL are texts like any other."""
    pipeline = Pipeline(connection)
    pipeline.add(
        b"SELECT to_json($1::text[])::text, to_json($2::text)::text",
        (
            text_array(texts),
            "".join(texts).encode(),
        ),
    )

    ((array, text),) = pipeline.run()

    assert (json.loads(array), json.loads(text)) == (texts, "".join(texts))


def test_answers_come_in_the_order_of_the_statements(connection):
    """Each statement has its first row, or None where it has none."""
    pipeline = Pipeline(connection)
    pipeline.execute("SELECT %s::int + 1, %s::text", ("1", None))
    pipeline.add(b"SELECT 1 WHERE false")
    pipeline.execute("SELECT '100%%'", ())

    assert pipeline.run() == [(b"2", None), None, (b"100%",)]


def test_the_statement_that_failed_is_named(connection):
    """Those after it were skipped, and the connection is good for a rollback and more."""
    pipeline = Pipeline(connection)
    pipeline.add(b"BEGIN")
    pipeline.add(b"SELECT 1")
    pipeline.add(b"SELECT 1 / 0")
    pipeline.add(b"SELECT 2")

    with pytest.raises(StatementFailed) as caught:
        pipeline.run()

    connection.rollback()
    assert caught.value.index == 2
    assert isinstance(caught.value.__cause__, psycopg.errors.DivisionByZero)
    assert connection.execute("SELECT 3").fetchone() == (3,)


def test_a_server_that_goes_away_in_the_middle_is_an_error(connection):
    """Neither a hang nor an answer: an operational error, as from any broken connection."""
    pipeline = Pipeline(connection)
    pipeline.add(b"BEGIN")
    pipeline.add(b"SELECT pg_terminate_backend(pg_backend_pid())")
    pipeline.add(b"SELECT 1")

    with pytest.raises((StatementFailed, psycopg.OperationalError)) as caught:
        pipeline.run()

    error = caught.value if caught.type is not StatementFailed else caught.value.__cause__
    assert isinstance(error, psycopg.OperationalError)


def test_a_server_that_does_not_answer_in_time_is_given_up(connection):
    """The connection is closed then: nobody knows what still runs on it."""
    pipeline = Pipeline(connection)
    pipeline.add(b"SELECT 1")
    pipeline.add(b"SELECT pg_sleep(60)")

    with pytest.raises(ServerSilent, match=r"no answer within 0\.2 s"):
        pipeline.run(0.2)

    assert connection.closed


def test_as_long_as_answers_come_the_server_is_not_given_up(connection):
    """It is silence that is bounded, not the whole: many statements may take their time."""
    pipeline = Pipeline(connection)
    for _ in range(6):
        # Each answer is bigger than the server's buffer, so that none waits for the next.
        pipeline.add(b"SELECT repeat('x', 100000), pg_sleep(0.3)")

    assert len(pipeline.run(1.0)) == 6


def test_more_than_both_buffers_hold_passes_in_both_directions(connection):
    """A server that cannot get rid of its answers stops reading; so we read while we write."""
    big = b"x" * 4_000_000
    pipeline = Pipeline(connection)
    for _ in range(8):
        pipeline.add(b"SELECT $1::text", (big,))

    assert pipeline.run() == [(big,)] * 8
