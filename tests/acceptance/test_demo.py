"""The demo, whole: real HTTP, real databases, real recorded events; and what it says when wrong."""

import json
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from tenantsync.cli.demo import demo
from tenantsync.demo import run as demo_run
from tenantsync.demo.expect import Person, fold
from tenantsync.demo.run import APPLICATION, TENANTS, run
from tenantsync.errors import ConfigError, MigrationFailed
from tenantsync.migrate import Report, Row, State

RECORDING = Path(__file__).parent.parent / "data" / "webhooks-broker.jsonl"


def event(event_type, moment, identifier="1", **data):
    """A sync event about one person of the tenant `t` of the application `a`."""
    return json.dumps(
        {
            "id": identifier,
            "type": event_type,
            "timestamp": f"2026-01-01T00:00:0{moment}.000Z",
            "tenant_id": "t",
            "application_id": "a",
            "data": {"sub": "s", **data},
        }
    ).encode()


def folded(*bodies):
    """The one person whom the events speak of."""
    (person,) = fold(bodies, tenant_id="t", application_id="a").values()
    return person


def test_the_demo_carries_the_recording():
    """Every sync line of the recording is there, its body and headers unchanged."""
    lines = [json.loads(line) for line in RECORDING.read_text(encoding="utf-8").splitlines()]
    shipped = (files("tenantsync.demo") / "recorded.jsonl").read_text(encoding="utf-8")

    assert [json.loads(line) for line in shipped.splitlines()] == [
        {key: line[key] for key in ("channel", "headers", "body")}
        for line in lines
        if line["channel"] == "sync"
    ]


def test_the_demo_ends_well(tmp_path):
    """121 of 186 recorded events are ours; every answer and every row is as it must be."""
    said = []
    result = run(tmp_path / "new" / "folder", say=said.append)

    assert result.problems == ()
    assert result.ok
    assert (result.recorded, result.foreign) == (186, 65)
    assert sum(result.outcomes.values()) == result.requests
    assert set(result.outcomes) == {"applied", "duplicate", "ignored", "stale"}
    assert [(tenant.key, len(tenant.people)) for tenant in result.tenants] == [
        ("corp", 16),
        ("solo", 1),
        ("harbour", 20),
        ("empty", 0),
    ]
    assert len(said) == 5


def test_any_order_ends_in_the_same_rows(tmp_path):
    """Another shuffle and other repetitions make the same people."""
    first = run(tmp_path / "1", seed=1)
    second = run(tmp_path / "2", seed=2)

    assert second.ok
    assert [tenant.people for tenant in second.tenants] == [
        tenant.people for tenant in first.tenants
    ]


def test_the_command_shows_people_and_counts(tmp_path):
    """A table per tenant, the outcomes, and a folder left behind where that was asked for."""
    folder = tmp_path / "kept"
    result = CliRunner().invoke(demo, ["--keep", str(folder)])

    assert result.exit_code == 0, result.output
    for words in ("corp: 16 people", "solo: 1 person", "harbour: 20 people", "empty: no people"):
        assert words in result.output
    assert "ann-mwspy43g@corp.test" in result.output
    assert max(len(line) for line in result.output.splitlines() if str(folder) not in line) <= 80
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "corp.db",
        "empty.db",
        "harbour.db",
        "solo.db",
        "tenantsync.db",
        "tenantsync.toml",
    ]
    with closing(sqlite3.connect(folder / "tenants" / "empty.db")) as connection:
        assert connection.execute("SELECT count(*) FROM av_sync_events").fetchone() == (0,)


def test_the_command_leaves_nothing_behind(tmp_path, monkeypatch):
    """Without a folder to keep, a temporary one is used and removed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(demo)

    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []


def test_wrong_rows_end_the_command_with_one(monkeypatch):
    """Where the databases disagree with the expectation, every difference is told."""

    def other(bodies, *, tenant_id, application_id):
        people = fold(bodies, tenant_id=tenant_id, application_id=application_id)
        if tenant_id == TENANTS["solo"]:
            return {sub: Person(sub, "other@solo.test") for sub in people}
        return {"nobody": Person("nobody")} if tenant_id == TENANTS["harbour"] else people

    monkeypatch.setattr(demo_run, "fold", other)
    result = CliRunner().invoke(demo)

    assert result.exit_code == 1
    assert "WRONG: tenant solo:" in result.output
    assert "WRONG: tenant harbour: 20 people, where 1 belong" in result.output
    assert "does not belong there" in result.output


@pytest.mark.parametrize("broken", ["application", "host"])
def test_wrong_answers_end_the_demo_badly(tmp_path, monkeypatch, broken):
    """Refused requests, and events that are taken for another application's, are told."""
    replaced = {
        "application": ("{application}", "another"),
        "host": ("{host}", "http://127.0.0.1:1"),
    }[broken]
    monkeypatch.setattr(demo_run, "_CONFIG", demo_run._CONFIG.replace(*replaced))
    result = run(tmp_path)
    problems = "\n".join(result.problems)

    assert not result.ok
    assert "tenant corp: 0 people, where 16 belong" in problems
    if broken == "host":
        assert "requests were not accepted: status 503" in problems
    else:
        assert "was answered ignored" in problems


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    """The demo never plays over what is there."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="is not empty"):
        run(tmp_path)


def test_without_uvicorn_the_demo_says_what_to_install(tmp_path, monkeypatch):
    """One sentence, before anything is made."""
    monkeypatch.setattr(demo_run, "uvicorn", None)

    with pytest.raises(ConfigError, match=r"pip install 'tenantsync\[server\]'"):
        run(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_failed_migration_ends_the_command_with_one(monkeypatch):
    """The tenant is named."""
    report = Report(("1",), (Row("corp", None, None, State.FAILED, 0.0, "the disk is full"),))
    monkeypatch.setattr(demo_run, "upgrade", lambda *arguments, **options: report)
    result = CliRunner().invoke(demo)

    assert result.exit_code == 1
    assert "'corp'" in result.output
    assert "the disk is full" in result.output
    with pytest.raises(MigrationFailed):
        report.check()


def test_the_expectation_follows_the_rules_of_the_merge():
    """Hand-made lives: the later event counts, and on a tie what takes something away."""
    joined = event("member.joined", 1, email="a@b.test", tenant_roles=["member"])
    granted = event("app_access.granted", 2, email=None, role_slug="editor")
    portal = event("app_access.granted", 3, role_slug="")
    changed = event("app_access.role_changed", 4, role_slug="")
    revoked = event("app_access.revoked", 2)
    suspended = event("member.suspended", 3)
    left = event("member.left", 5)
    created = event("subject.created", 1, email="a@b.test")

    assert folded(created) == Person("s", "a@b.test")
    assert folded(joined) == Person("s", "a@b.test", membership="active", tenant_roles=("member",))
    assert folded(granted, joined).app_role == "editor"
    assert folded(portal, granted, joined).app_role == "editor"
    assert folded(changed, granted, joined).app_role is None
    assert folded(revoked, granted) == Person("s", has_app_access=False)
    assert folded(joined, suspended).membership == "suspended"
    assert folded(left, suspended, granted, joined) == Person("s", "a@b.test", membership="left")


def test_the_expectation_leaves_others_out():
    """Other tenants, other applications and types that change nothing make no rows."""
    bodies = [event("member.joined", 1, tenant_roles=[]), event("invite.accepted", 1)]

    assert fold(bodies, tenant_id="other", application_id="a") == {}
    assert fold(bodies, tenant_id="t", application_id=APPLICATION) == {}
    assert fold(bodies[1:], tenant_id="t", application_id="a") == {}
