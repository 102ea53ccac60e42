"""The tutorial's Python runs as printed, on the tenant that its commands make."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette

from tenantsync.cli import commands
from tenantsync.events import parse

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "first-tenant.md"
EVENT = b"""{"id":"e1","data":{"sub":"ann","email":"ann@example.test"},"type":"member.joined",
"tenant_id":"93ce0187-9290-491b-9f06-be209b3d2f92","timestamp":"2026-08-22T06:00:37.847Z",
"application_id":"my-application"}"""


def test_the_tutorials_python_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The application hears of the member, and the query finds her."""
    monkeypatch.chdir(tmp_path)
    for command in ("init", "migrate upgrade"):
        done = CliRunner().invoke(commands, command.split(), catch_exceptions=False)
        assert done.exit_code == 0
    application, query = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)

    module: dict[str, object] = {}
    exec(application, module)  # noqa: S102 - the tutorial is ours
    assert isinstance(module["app"], Starlette)
    with module["sync"] as sync:
        sync.handle_blocking(parse(EVENT))
    exec(query, {})  # noqa: S102 - the tutorial is ours

    assert capsys.readouterr().out.splitlines()[-2:] == [
        "member.joined ann ",
        "ann@example.test None",
    ]
