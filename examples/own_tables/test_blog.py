"""The blog's own tests: `pytest` in this folder."""

from datetime import UTC, datetime, timedelta

import pytest
from blog import Identity, Order, Post
from sqlalchemy import select

from tenantsync.kit import TenantDatabases
from tenantsync.testing.courier import AuthVital


def test_a_new_member_has_a_post(authvital: AuthVital, tenant_databases: TenantDatabases) -> None:
    """The hook writes it in the same transaction, and once."""
    for _ in range(2):
        authvital.deliver("member.joined", tenant="acme", sub="ann", given_name="Ann")

    with tenant_databases.session("acme") as session:
        assert [post.title for post in session.get_one(Identity, "ann").posts] == ["Ann is here"]
    with tenant_databases.session("globex") as session:
        assert session.scalars(select(Post)).all() == []


def test_posts_go_and_orders_stay(authvital: AuthVital, tenant_databases: TenantDatabases) -> None:
    """When AuthVital deletes a person, each foreign key does as it was told."""
    authvital.deliver("member.joined", tenant="acme", sub="ann")
    with tenant_databases.session("acme") as session:
        session.add(Order(buyer_id="ann"))

    authvital.deliver("subject.deleted", tenant="acme", sub="ann")

    with tenant_databases.session("acme") as session:
        assert session.scalars(select(Post)).all() == []
        assert [order.buyer_id for order in session.scalars(select(Order))] == [None]


@pytest.mark.authvital_chaos
def test_orders_are_cancelled_in_any_order(
    authvital: AuthVital, tenant_databases: TenantDatabases
) -> None:
    """However late and often the deliveries come, who left has nothing open."""
    with tenant_databases.session("acme") as session:
        session.add(Identity(id="ann"))
        session.flush()
        session.add(Order(buyer_id="ann"))

    for happened in ("joined", "suspended", "activated", "left"):
        authvital.deliver(f"member.{happened}", tenant="acme", sub="ann")

    with tenant_databases.session("acme") as session:
        assert session.scalars(select(Order.state)).all() == ["cancelled"]


def test_who_came_back_keeps_their_orders(
    authvital: AuthVital, tenant_databases: TenantDatabases
) -> None:
    """An old leaving that comes late takes nothing away: the hook asks the row."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authvital.deliver("member.joined", tenant="acme", sub="ann")
    with tenant_databases.session("acme") as session:
        session.add(Order(buyer_id="ann"))

    authvital.deliver("member.left", tenant="acme", sub="ann", at=yesterday)

    with tenant_databases.session("acme") as session:
        assert session.scalars(select(Order.state)).all() == ["open"]
