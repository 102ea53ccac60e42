"""`tenantsync emulate` runs a local AuthVital; `tenantsync send` lets it deliver one event."""

import threading
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.testing.control import (
    DEFAULT_EMAIL,
    EmulatorError,
    Order,
    Report,
    ask,
    control,
)
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.people import SYNC_TYPES
from tenantsync.testing.wicked import WICKED

__all__ = ["emulate", "send"]

_TARGET = "http://127.0.0.1:8000/webhooks/authvital"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option(
    "--port",
    default=9400,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to serve on; 0 takes a free one.",
)
@click.option(
    "--target",
    default=_TARGET,
    show_default=True,
    metavar="URL",
    help="Where `tenantsync send` delivers to, unless it says otherwise.",
)
def emulate(host: str, port: int, target: str) -> None:
    """Run a local AuthVital until Ctrl-C.

    It serves its JWKS, and signs and delivers the events that `tenantsync send` orders.
    """
    _check_url(target, "--target")
    emulator = Emulator(host=host, port=port)
    control(emulator, target)
    with ExitStack() as stack:
        try:
            stack.enter_context(emulator)
        except OSError as error:
            reason = error.strerror or str(error)
            raise click.ClickException(
                f"cannot serve on {host}:{port} ({reason}): choose another --port"
            ) from error
        click.echo(_welcome(emulator, target))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("stopped")


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--tenant", required=True, metavar="KEY", help="A tenant of the configuration.")
@click.option("--sub", help="The person's subject id.  [default: derived from the address]")
@click.option(
    "--email", help=f"The person's address.  [default: SUB@example.test, or {DEFAULT_EMAIL}]"
)
@click.option("--data", metavar="JSON", help="Payload keys to add or replace, as a JSON object.")
@click.option(
    "--wicked", metavar="NAME", type=click.Choice(list(WICKED)), help="Spoil the delivery."
)
@click.option("--to", metavar="URL", help="The receiver.  [default: the emulator's --target]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
@pass_context
def send(
    context: Context,
    event_type: str,
    tenant: str,
    sub: str | None,
    email: str | None,
    data: str | None,
    wicked: str | None,
    to: str | None,
    as_json: bool,
) -> None:
    """Let the running emulator deliver one event of TYPE, such as member.joined.

    Prints what the receiver answered; ends with 0 if that was a 2xx, and with 1 if not.
    """
    overrides = _read_data(data)
    if event_type not in SYNC_TYPES and not overrides:
        raise click.UsageError(
            f"{event_type!r} is none of the sync types ({', '.join(SYNC_TYPES)}): "
            "for another type give its --data too"
        )
    if to is not None:
        _check_url(to, "--to")
    settings = context.settings()
    tenants = settings.tenants
    if tenant not in tenants:
        known = ", ".join(tenants) or "none yet"
        raise click.UsageError(f"no tenant {tenant!r} in the configuration (there are: {known})")
    order = Order(
        type=event_type,
        tenant_id=tenants[tenant].id,
        application_id=settings.authvital.application_id,
        sub=sub,
        email=email,
        data=overrides,
        wicked=wicked,
        to=to,
    )
    try:
        report = ask(settings.authvital.host, order)
    except EmulatorError as error:
        if error.wrong:
            raise click.UsageError(str(error)) from error
        raise click.ClickException(str(error)) from error
    click.echo(msgspec.json.encode(report).decode() if as_json else _tell(report))
    if not report.ok:
        raise click.exceptions.Exit(1)


def _welcome(emulator: Emulator, target: str) -> str:
    return (
        f"AuthVital emulator at {emulator.url} (Ctrl-C ends it)\n"
        f"  signs with   {emulator.keys.active.kid}\n"
        f"  delivers to  {target}\n"
        "\n"
        "In tenantsync.toml:\n"
        "\n"
        "[authvital]\n"
        f'host = "{emulator.url}"\n'
        "\n"
        "Then, once `tenantsync serve` runs:\n"
        "\n"
        "  tenantsync send member.joined --tenant KEY"
    )


def _tell(report: Report) -> str:
    about = f" about {report.sub}" if report.sub else ""
    lines = [f"{report.type} {report.event_id}{about} to {report.to}"]
    lines += [
        f"no answer: {answer.error}"
        if answer.status is None
        else f"{answer.status} {answer.answer}".rstrip()
        for answer in report.answers
    ]
    return "\n".join(lines)


def _read_data(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise click.UsageError(f"--data is no JSON object: {error}") from error


def _check_url(text: str, option: str) -> None:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise click.UsageError(f"{option} {text!r} is no URL: write it like {_TARGET}")
