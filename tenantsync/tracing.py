"""OpenTelemetry: an observer that makes a span of each delivery.

Needs the extra `tracing`. A span tells the type, the outcome, the door and the tenant's key; it
holds no id of an event or a person, no claim, and no message of an error.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tenantsync.errors import ConfigError
from tenantsync.observe import Delivery

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

try:
    from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "opentelemetry":
        raise
    _INSTALLED = False
else:
    _INSTALLED = True

__all__ = ["TracingObserver"]

_SPAN: Final = "tenantsync.deliver"
_FAILED: Final = "failed"
_NANOSECONDS: Final = 1_000_000_000


class TracingObserver:
    """Makes one span per delivery, named `tenantsync.deliver`.

    An observer hears of a delivery when it is over: the span is made then, and its start is set
    back by the time that the delivery took. It is a child of the span in which the delivery was
    handled, such as the web framework's for the request.

    Its attributes, where they are known: `tenantsync.type`, `tenantsync.outcome` (`failed` where
    the event was refused), `tenantsync.door`, `tenantsync.tenant` (the key), `tenantsync.reason`,
    and `error.type`, the class of the error.

    Args:
        tracer_provider: Makes the tracer; OpenTelemetry's global one by default.
        clock: Nanoseconds since 1970.

    Raises:
        ConfigError: The extra `tracing` is not installed.
    """

    def __init__(
        self,
        *,
        tracer_provider: "TracerProvider | None" = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if not _INSTALLED:
            raise ConfigError('traces need OpenTelemetry: pip install "tenantsync[tracing]"')
        self._tracer = get_tracer("tenantsync", tracer_provider=tracer_provider)
        self._clock = clock

    def __call__(self, delivery: Delivery, /) -> None:
        """Make the span."""
        ended = self._clock()
        span = self._tracer.start_span(
            _SPAN,
            kind=SpanKind.CONSUMER,
            attributes=_attributes(delivery),
            start_time=ended - round(delivery.seconds * _NANOSECONDS),
        )
        if delivery.failed:
            span.set_status(Status(StatusCode.ERROR, delivery.error or delivery.reason))
        span.end(ended)


def _attributes(delivery: Delivery) -> dict[str, str]:
    said = {
        "tenantsync.type": delivery.event_type,
        "tenantsync.outcome": _FAILED if delivery.outcome is None else delivery.outcome.value,
        "tenantsync.door": delivery.door,
        "tenantsync.tenant": delivery.tenant,
        "tenantsync.reason": delivery.reason,
        "error.type": delivery.error,
    }
    return {name: value for name, value in said.items() if value}
