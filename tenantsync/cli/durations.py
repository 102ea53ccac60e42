"""A length of time such as `30d`, as an option takes it."""

from pathlib import Path
from typing import Final

import click

from tenantsync.config.values import duration

__all__ = ["Duration"]

_LONGEST: Final = 3_650 * 86_400.0


class Duration(click.ParamType[float]):
    """A length of time such as `2h`, in seconds."""

    name = "DURATION"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        try:
            return float(str(duration(0, _LONGEST)(value, Path())))
        except ValueError:
            self.fail(f'"{value}" is no length of time: write 90s, 15m, 2h or 3d', param, ctx)
