"""The examination at the end of the chaos tests notices each kind of broken promise."""

import pytest
from chaos.courier import Courier, letters
from chaos.house import free_port, lives
from guarding import ask


@pytest.mark.parametrize(
    ("where", "damage", "complaint"),
    [
        ("tenant", None, None),
        ("tenant", "DELETE FROM {s}av_sync_events WHERE event_id = '{id}'", "is not what"),
        ("tenant", "UPDATE {s}av_identities SET email = 'x'", "is not what"),
        ("tenant", "INSERT INTO {s}chaos_effects VALUES ('{id}')", "2 effects"),
        ("tenant", "DELETE FROM {s}chaos_effects WHERE event_id = '{id}'", "0 effects"),
        ("tenant", "INSERT INTO {s}chaos_effects VALUES ('unheard of')", "outlived"),
        ("control", "DELETE FROM {s}inbox", "lost"),
        ("control", "UPDATE {s}inbox SET state = 'applied', outcome = 'applied'", "lost"),
    ],
)
def test_a_broken_promise_is_noticed(where, damage, complaint, build, starter, authvital):
    """One row more, less or other than promised fails the examination; none passes it."""
    house = build("sqlite", ["acme", "globex"])
    (house.folder / "hooks-fail-id-globex").touch()
    post = letters(lives(authvital, house.tenants, 3))
    port = free_port()
    server = starter.start("serve", house.config, port=port).ready()
    with Courier(authvital, port) as courier:
        courier.deliver(post)
    assert server.kill()
    acme = house.tenants["id-acme"].placement
    ((event_id,), *_) = ask(acme, "SELECT event_id FROM {s}chaos_effects")
    if damage is not None:
        place = acme if where == "tenant" else house.control
        ask(place, damage.replace("{id}", str(event_id)))

    if complaint is None:
        house.examine(post, drained=False)
    else:
        with pytest.raises(AssertionError, match=complaint):
            house.examine(post, drained=False)
