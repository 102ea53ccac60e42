"""PostgreSQL is killed and restarted under load: the same promises, and nobody lends a hand."""

import signal

from chaos.courier import Courier, letters
from chaos.house import free_port, lives
from chaos.processes import until


def test_the_database_dies_again_and_again(build, phoenix, starter, authvital, amount):
    """Tenants and inbox are on one server, which crashes: nothing acknowledged is lost."""
    house = build("phoenix", ["acme", "globex", "initech"], database=phoenix.server.url(),
                  control=phoenix.server.url())  # fmt: skip
    post = letters(lives(authvital, house.tenants, 40 * amount.restarts))
    portion = len(post) // (amount.restarts + 1)
    # The hooks of one tenant fail at first, so that the inbox and its worker are busy too.
    sore = house.folder / "hooks-fail-id-globex"
    sore.touch()
    port = free_port()
    server = starter.start("serve", house.config, port=port).ready()
    with Courier(authvital, port, senders=24) as courier:
        sending = courier.begin(post)
        for number in range(amount.restarts):
            wanted = portion * (number + 1)
            until(lambda: courier.acknowledged >= wanted or sending.done(), "events should flow")  # noqa: B023
            assert not sending.done(), "the load ended before the last crash"
            failures = sum(count for status, count in courier.statuses.items() if status != 200)
            phoenix.crash((signal.SIGQUIT, signal.SIGKILL)[number % 2])
            until(
                lambda: (
                    failures  # noqa: B023
                    < sum(count for status, count in courier.statuses.items() if status != 200)
                ),
                "a delivery should meet the crash",
            )
            phoenix.rise()
            sore.unlink(missing_ok=True)
        sending.result(180)
        # A worker that could not tell the inbox what it did lets its lease run out.
        house.let_leases_end()
        until(lambda: not house.waiting(), "the inbox should drain")

        assert set(courier.statuses) <= {200, 202, 503}
    assert server.alive()
    server.stop()
    house.examine(post)
