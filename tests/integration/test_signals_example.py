"""The example of signals of one's own does what it says, over a real PostgreSQL."""

import importlib.util
import queue
import threading
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "postgres_signals.py"
BOUND = 30.0  # seconds that a test waits for another thread before it fails


@pytest.fixture
def opened():
    """Make signals from the example, which are closed when the test ends."""
    spec = importlib.util.spec_from_file_location("postgres_signals", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    made = []

    def make(url):
        made.append(example.PostgresSignals(url.replace("+psycopg", "")))
        return made[-1]

    yield make
    for signals in made:
        signals.close()


def published_until(signals, heard, tenant_id):
    """Publish until it is heard: who listens a moment too late hears the next one."""
    for _ in range(int(BOUND / 0.25)):
        signals.publish(tenant_id)
        try:
            return heard.get(timeout=0.25)
        except queue.Empty:
            continue
    raise AssertionError("nobody heard the signal")


def test_every_worker_is_woken(postgres, opened):
    """A signal reaches whoever listens, and the id arrives as it was."""
    url = postgres.create_database()
    first, second = queue.Queue(), queue.Queue()
    opened(url).listen(first.put)
    opened(url).listen(second.put)
    publisher = opened(url)

    heard = [published_until(publisher, each, "a.b c'; *") for each in (first, second)]
    assert heard == ["a.b c'; *"] * 2


def test_an_outage_ends_by_itself(postgres, opened):
    """Sessions that the server ends are made anew; nothing that is published meanwhile raises."""
    url = postgres.create_database()
    heard = queue.Queue()
    opened(url).listen(heard.put)
    publisher = opened(url)
    assert published_until(publisher, heard, "before") == "before"

    name = url.rpartition("/")[2]
    with postgres.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )

    while published_until(publisher, heard, "after") != "after":
        continue


def test_closing_ends_the_thread(opened):
    """Also where there never was a server."""
    before = set(threading.enumerate())
    signals = opened("postgresql://nobody@127.0.0.1:1/nowhere")
    signals.publish("acme")
    signals.close()

    assert set(threading.enumerate()) - before == set()
