"""Questions to what is known of one person: may they enter, would they lose that, are they gone?

Pure. What an application asks at its door is wider: see docs/how-to/authorise.md.
"""

from tenantsync.sync.merge import Person, Tombstone

__all__ = ["is_missing", "loses", "may_enter"]

_State = Person | Tombstone | None


def may_enter(state: _State, tenant_id: str) -> bool:
    """Whether the person has access in a tenant, as far as the mirror knows.

    Where nothing was ever said of a membership, access that was granted by name stands in for it;
    access that a new row merely starts with does not.

    Args:
        state: What is known of the person.
        tenant_id: AuthVital's id of the tenant.
    """
    if not isinstance(state, Person):
        return False
    values = state.values
    if not (values["is_active"] and values["has_app_access"]):
        return False
    if "membership" in state.clocks:
        return bool(values["membership_status"] == "active" and values["tenant_id"] == tenant_id)
    return "has_app_access" in state.clocks


def loses(before: _State, after: _State, tenant_id: str) -> bool:
    """Whether a person who has access would lose it, or be left without the role that they had.

    Args:
        before: What is known of the person.
        after: What would be known.
        tenant_id: AuthVital's id of the tenant.
    """
    if before is after or not may_enter(before, tenant_id):
        return False
    if not may_enter(after, tenant_id):
        return True
    return _role_of(before) is not None and _role_of(after) is None


def is_missing(person: Person, tenant_id: str, *, previous: int, shared: bool) -> bool:
    """Whether a person who is not in a tenant's list has left it: they missed the one before too.

    Whoever was in the list before has a clock of its time. So if every clock is older, they were
    not, and nothing was heard of them since, of whatever kind.

    Args:
        person: What is known of them.
        tenant_id: AuthVital's id of the tenant.
        previous: When the list before was taken, in milliseconds since 1970.
        shared: Whether other tenants' people are in the same place. Then nobody is taken for this
            tenant's of whom it was never said.
    """
    newest = max(person.clocks.values(), default="")
    if newest >= f"{previous:013d}" or person.created >= previous:
        return False
    if "membership" not in person.clocks:
        return not shared
    values = person.values
    return bool(values["tenant_id"] == tenant_id and values["membership_status"] != "left")


def _role_of(state: _State) -> str | None:
    role: str | None = state.values["app_role"] if isinstance(state, Person) else None
    return role
