"""Which tenants a run is for: keys and patterns of keys, and who is left out."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tenantsync.errors import ConfigError
from tenantsync.tenants import Tenant

__all__ = ["choose"]


def choose(
    tenants: Iterable[Tenant], wanted: Sequence[str] = (), excluded: Sequence[str] = ()
) -> list[Tenant]:
    """Return the tenants whose keys match, in the order of what is wanted.

    Args:
        tenants: All tenants.
        wanted: Keys, or patterns such as `eu_*`; none means all.
        excluded: Keys or patterns of those that are left out.

    Raises:
        ConfigError: A key or a pattern matches nobody; a typing error must not look like success.
    """
    known = {tenant.key: tenant for tenant in tenants}
    chosen = _matching(known, wanted) if wanted else dict.fromkeys(known)
    out = _matching(known, excluded)
    return [known[key] for key in chosen if key not in out]


def _matching(known: dict[str, Tenant], patterns: Sequence[str]) -> dict[str, None]:
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in known:
            matching = [pattern]
        elif any(sign in pattern for sign in "*?["):
            matching = [key for key in known if fnmatchcase(key, pattern)]
        else:
            matching = []
        if not matching:
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise ConfigError(f'no tenant has the key "{pattern}"{hint}')
        found.update(dict.fromkeys(matching))
    return found
