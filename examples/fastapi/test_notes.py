"""The notes' own tests: `pytest` in this folder."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from notes import create_app
from sqlalchemy.orm import Session

from tenantsync import Event, Outcome, TenantSync
from tenantsync.testing.courier import AuthVital


@pytest.fixture
def client(tenantsync_app: TenantSync, authvital: AuthVital) -> Iterator[TestClient]:
    """The application, running; deliveries go in through its webhook."""
    app = create_app(tenantsync_app)
    authvital.send_to(app)
    with TestClient(app) as client:
        yield client


def bearer(authvital: AuthVital, sub: str, tenant: str) -> dict[str, str]:
    """Return the header that a person's browser would send."""
    return {"Authorization": f"Bearer {authvital.access_token(sub, tenant)}"}


def test_a_member_comes_in(client: TestClient, authvital: AuthVital) -> None:
    """With a token, once the webhook has told of them; into their own tenant."""
    ann = bearer(authvital, "ann", "acme")
    assert client.get("/me").status_code == 401
    assert client.get("/me", headers=ann).status_code == 403

    authvital.deliver("member.joined", tenant="acme", sub="ann", email="ann@example.test")

    assert client.get("/me", headers=ann).json() == {
        "sub": "ann",
        "email": "ann@example.test",
        "role": None,
        "tenant": "acme",
    }
    assert client.get("/me", headers=bearer(authvital, "ann", "globex")).status_code == 403


def test_access_ends_with_the_event(client: TestClient, authvital: AuthVital) -> None:
    """The token is good for an hour more; the person is not."""
    authvital.deliver("member.joined", tenant="acme", sub="ann")
    ann = bearer(authvital, "ann", "acme")
    assert client.get("/me", headers=ann).status_code == 200

    authvital.deliver("member.left", tenant="acme", sub="ann")

    assert client.get("/me", headers=ann).status_code == 403


def test_access_ends_before_the_event_is_applied(
    client: TestClient, authvital: AuthVital, tenantsync_app: TenantSync
) -> None:
    """Where a hook fails, the event waits; whom it locks out is locked out already."""
    authvital.deliver("member.joined", tenant="acme", sub="ann")
    ann = bearer(authvital, "ann", "acme")

    @tenantsync_app.on("member.left")
    def fail(event: Event, session: Session) -> None:
        raise RuntimeError

    assert authvital.deliver("member.left", tenant="acme", sub="ann") is Outcome.PARKED
    assert client.get("/me", headers=ann).status_code == 403


def test_notes_stay_in_their_tenant(client: TestClient, authvital: AuthVital) -> None:
    """What one tenant's people write, another's do not read."""
    for sub, tenant in (("ann", "acme"), ("gus", "globex")):
        authvital.deliver("member.joined", tenant=tenant, sub=sub)
    ann, gus = bearer(authvital, "ann", "acme"), bearer(authvital, "gus", "globex")

    written = client.post("/notes", params={"text": "hello"}, headers=ann)

    assert written.status_code == 201
    assert client.get("/notes", headers=ann).json() == ["hello"]
    assert client.get("/notes", headers=gus).json() == []
