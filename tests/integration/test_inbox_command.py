"""The command line of the inbox: what it shows, what it puts back, and what it gives up."""

import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from guarding import body_of
from sqlalchemy import update

from tenantsync.app import TenantSync
from tenantsync.cli import commands
from tenantsync.config import load
from tenantsync.control.inbox import Arrival, State
from tenantsync.control.tables import inbox as inbox_table
from tenantsync.migrate.control import upgrade_control

CONFIG = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "database"
url = "sqlite:///tenants/{key}.db"
[tenants.acme]
id = "id-of-acme"
[tenants.globex]
id = "id-of-globex"
"""
SECRET = "ann-the-canary"
NO_HOOKS = ("--hooks", "none")


@pytest.fixture
def folder(tmp_path: Path, migrated_templates: Callable[[int], str]) -> Path:
    """Give a folder with a configuration and two migrated tenants."""
    (tmp_path / "tenantsync.toml").write_text(CONFIG)
    (tmp_path / "tenants").mkdir()
    for key in ("acme", "globex"):
        shutil.copyfile(migrated_templates(0), tmp_path / "tenants" / f"{key}.db")
    return tmp_path


@pytest.fixture
def sync(folder: Path) -> Iterator[TenantSync]:
    """Give what puts events into the inbox, beside the command line."""
    with TenantSync(load(folder / "tenantsync.toml")) as made:
        upgrade_control(made.control)
        yield made


@pytest.fixture
def run(folder: Path):
    """Give what calls `tenantsync inbox`."""

    def call(*arguments: str, typed: str | None = None):
        config = ["-c", str(folder / "tenantsync.toml")]
        return CliRunner().invoke(commands, [*config, "inbox", *arguments], input=typed)

    return call


def arrival(
    tenant: str, number: int, *, kind: str = "member.joined", known: bool = True
) -> Arrival:
    """Return an event about a person of its own."""
    return Arrival(
        tenant_id=tenant,
        event_id=f"e{number}",
        type=kind,
        subject=f"{SECRET}-{number}",
        timestamp=1_793_000_400_000,
        body=body_of(
            kind, f"{SECRET}-{number}", tenant=tenant or None, id=f"e{number}",
            application="an-application",
        ),
        signed_at=None,
        door="webhook",
        reason="its database did not answer",
        known=known,
    )  # fmt: skip


def listed(run, *arguments: str) -> list[str]:
    """Return the events' own ids, as `list` has them."""
    document = json.loads(run("list", "--json", *arguments).stdout)
    return [event["event_id"] for event in document["events"]]


def numbers(run, *arguments: str) -> list[str]:
    """Return the numbers that `list` gives to events."""
    document = json.loads(run("list", "--json", *arguments).stdout)
    return [str(event["id"]) for event in document["events"]]


def people(folder: Path, key: str) -> list[str]:
    """Return who is mirrored at a tenant."""
    with closing(sqlite3.connect(folder / "tenants" / f"{key}.db")) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM av_identities ORDER BY id")]


def test_an_inbox_that_was_never_made_is_empty(run, folder):
    """Every command says so, none fails, and nothing is made."""
    before = sorted(folder.rglob("*"))

    assert run("list").output == "0 events\n"
    assert run("list", "--lanes").output == "0 tenants\n"
    assert run("retry", *NO_HOOKS).output == "0 events put back\n"
    assert run("discard", "--tenant", "acme", "--yes").output == "0 events discarded\n"
    assert run("show", "1").exit_code == 2
    assert sorted(folder.rglob("*")) == before


def test_list_shows_what_waits_and_why(run, sync):
    """A line for each event, the oldest first, with its tenant's key and no word of the person."""
    sync.inbox.park([arrival("id-of-acme", 1), arrival("who", 2, known=False)])
    sync.inbox.quarantine([arrival("id-of-globex", 3)])

    result = run("list")

    lines = [line.split() for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert [line[1:4] for line in lines[:3]] == [
        ["acme", "member.joined", "parked"],
        ["who", "member.joined", "parked"],
        ["globex", "member.joined", "quarantined"],
    ]
    assert "its database did not answer" in result.output
    assert result.output.splitlines()[-1] == "3 events"
    assert SECRET not in result.output


def test_list_takes_filters(run, sync):
    """By tenant (its key or its id), type, state and age; and no more than asked for."""
    sync.inbox.park([arrival("id-of-acme", 1), arrival("id-of-acme", 2, kind="subject.created")])
    sync.inbox.park([arrival("who", 3, known=False)])
    sync.inbox.quarantine([arrival("id-of-globex", 4), arrival("", 5, known=False)])
    make_older(sync, "e1", hours=5)

    assert listed(run) == ["e1", "e2", "e3", "e4", "e5"]
    assert listed(run, "--tenant", "acme") == ["e1", "e2"]
    assert listed(run, "--tenant", "id-of-acme") == ["e1", "e2"]
    assert listed(run, "--tenant", "who") == ["e3"]
    assert listed(run, "--tenant", "") == ["e5"]
    assert listed(run, "--type", "subject.*") == ["e2"]
    assert listed(run, "--type", "member.joined", "--state", "parked") == ["e1", "e3"]
    assert listed(run, "--state", "quarantined") == ["e4", "e5"]
    assert listed(run, "--older-than", "2h") == ["e1"]
    assert listed(run, "--older-than", "6h") == []
    assert listed(run, "--limit", "2") == ["e1", "e2"]
    assert run("list", "--limit", "2").output.splitlines()[-1] == (
        "2 events, and there are more: see --limit"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "--tenant", "acmee"), "no tenant has the key or the id 'acmee'"),
        (("list", "--state", "lost"), "is not one of"),
        (("list", "--older-than", "soon"), '"soon" is no length of time: write 90s'),
        (("list", "--lanes", "--type", "a.b"), "--lanes goes with --tenant only"),
        (("list", "--limit", "0"), "--limit"),
        (("show", "77"), "there is no event 77 in the inbox"),
        (("retry", "77", *NO_HOOKS), "there is no event 77 in the inbox"),
        (("retry", "1", "--tenant", "acme", *NO_HOOKS), "but not both"),
        (("discard",), "say which: give IDs"),
        (("discard", "77", "--yes"), "there is no event 77 in the inbox"),
    ],
)
def test_what_is_asked_wrongly(run, sync, arguments, words):
    """The exit code is 2, and the sentence says what would be right."""
    sync.inbox.park([arrival("id-of-acme", 1)])

    result = run(*arguments)

    assert (result.exit_code, words in result.output) == (2, True), result.output


def test_lanes_show_who_waits_for_what(run, sync):
    """A line for each tenant: how many, how long, and what is in the way."""
    sync.inbox.park([arrival("id-of-acme", 1), arrival("id-of-acme", 2)])
    sync.inbox.park([arrival("who", 3, known=False)])
    sync.inbox.quarantine([arrival("id-of-globex", 4)])
    lane = sync.inbox.claim("me", tenant_id="id-of-acme")
    assert "held by me" in run("list", "--lanes", "--tenant", "acme").output
    sync.inbox.release(lane, retry_in=600.0, error="its tables are locked")

    people_read = run("list", "--lanes").output
    document = json.loads(run("list", "--lanes", "--json").stdout)["lanes"]

    (line,) = [line for line in people_read.splitlines() if line.startswith("acme")]
    assert "2 parked" in line
    assert "failed once" in line
    assert "its tables are locked" in line
    assert people_read.splitlines()[-1] == "3 tenants"
    lanes = {lane["tenant"] or lane["tenant_id"]: lane for lane in document}
    assert (lanes["acme"]["waiting"], lanes["acme"]["attempts"]) == (2, 1)
    assert (lanes["who"]["known"], lanes["globex"]["quarantined"]) == (False, 1)
    assert len(json.loads(run("list", "--lanes", "--tenant", "who", "--json").stdout)["lanes"]) == 1


def test_show_keeps_the_body_to_itself(run, sync):
    """The stored body is personal data: it is printed when it is asked for, and not otherwise."""
    sync.inbox.park([arrival("id-of-acme", 1)])
    (number,) = numbers(run)

    told, with_body = run("show", number), run("show", number, "--body")
    document = json.loads(run("show", number, "--json").stdout)
    whole = json.loads(run("show", number, "--json", "--body").stdout)

    assert (told.exit_code, with_body.exit_code) == (0, 0)
    assert "@example.test" not in told.output
    assert "@example.test" in with_body.output
    assert "state        parked" in told.output
    assert "body" not in document
    assert document["tenant"] == "acme"
    assert whole["body"].encode() == arrival("id-of-acme", 1).body


def test_a_body_that_is_no_text_is_shown_all_the_same(run, sync):
    """A program gets it in base64; a terminal gets nothing that it would obey."""
    strange = arrival("", 1, known=False)
    object.__setattr__(strange, "body", b"\xff\x1b[2Jok")
    sync.inbox.quarantine([strange])
    (number,) = numbers(run)

    document = json.loads(run("show", number, "--json", "--body").stdout)

    assert document["body_base64"] == "/xtbMkpvaw=="
    assert "\x1b" not in run("show", number, "--body").output


def test_retry_applies_what_was_given_up_on(run, sync, folder):
    """Events in quarantine come back, and are in their tenants when the command ends."""
    sync.inbox.quarantine([arrival("id-of-acme", 1), arrival("id-of-globex", 2)])
    sync.inbox.park([arrival("id-of-acme", 3)])

    result = run("retry", *NO_HOOKS)

    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "3 events put back",
        "acme  2 applied",
        "globex  1 applied",
    ]
    assert people(folder, "acme") == [f"{SECRET}-1", f"{SECRET}-3"]
    assert people(folder, "globex") == [f"{SECRET}-2"]
    assert listed(run, "--state", "applied") == ["e1", "e2", "e3"]


def test_retry_takes_ids_and_filters(run, sync, folder):
    """Only what is meant is put back; the others stay where they are."""
    sync.inbox.quarantine([arrival("id-of-acme", 1), arrival("id-of-acme", 2)])
    sync.inbox.quarantine([arrival("id-of-globex", 3, kind="subject.created")])
    first = numbers(run)[0]

    by_number = run("retry", first, *NO_HOOKS, "--json")
    assert people(folder, "acme") == [f"{SECRET}-1"]
    by_type = run("retry", "--type", "subject.*", *NO_HOOKS)

    assert json.loads(by_number.stdout) == {
        "ok": True,
        "put_back": 1,
        "tenants": [
            {
                "tenant": "acme",
                "tenant_id": "id-of-acme",
                "settled": {"applied": 1},
                "waiting": 0,
                "quarantined": 0,
                "error": None,
                "held_by": None,
            }
        ],
    }
    assert by_type.output.splitlines() == ["1 event put back", "globex  1 applied"]
    assert listed(run, "--state", "quarantined") == ["e2"]


def test_retry_says_what_is_still_in_the_way(run, sync, folder):
    """A tenant that cannot be had is told with its reason, exit code 1; the others are applied."""
    (folder / "tenants" / "acme.db").unlink()
    sync.inbox.park([arrival("id-of-acme", 1), arrival("id-of-globex", 2)])
    sync.inbox.park([arrival("who", 3, known=False)])
    sync.inbox.quarantine([arrival("", 4, known=False)])

    result = run("retry", *NO_HOOKS)

    lines = result.output.splitlines()
    assert result.exit_code == 1
    acme = next(line for line in lines if line.startswith("acme"))
    assert acme.startswith("acme  1 still parked: ")
    assert "globex  1 applied" in lines
    assert any(line.startswith("who") and "nobody registered" in line for line in lines)
    assert any("what cannot be read cannot be applied" in line for line in lines)
    assert people(folder, "globex") == [f"{SECRET}-2"]


def test_a_lane_that_another_worker_has_is_left_to_it(run, sync):
    """Whoever drains it goes on with it: that is no failure, and it is said."""
    sync.inbox.park([arrival("id-of-acme", 1)])
    sync.inbox.claim("the other one", tenant_id="id-of-acme")

    result = run("retry", *NO_HOOKS)

    assert result.exit_code == 0
    assert "acme  1 still parked, the other one is at it now" in result.output


def test_retry_wants_the_hooks_or_a_word_that_there_are_none(run, sync, folder):
    """Without `app` nothing is put back, and the sentence says what to do."""
    sync.inbox.quarantine([arrival("id-of-acme", 1)])

    result = run("retry")

    assert isinstance(result.exception, Exception)
    assert type(result.exception).__name__ == "ConfigError"
    assert "`app` does not say where the hooks are" in str(result.exception)
    assert listed(run, "--state", "quarantined") == ["e1"]


def test_retry_calls_the_hooks_of_the_application(run, sync, folder, monkeypatch):
    """With `app` they are called for what is put back; with `--hooks none` they are not."""
    (folder / "shop_with_hooks.py").write_text(
        "from pathlib import Path\n"
        "from tenantsync import TenantSync\n"
        f"sync = TenantSync.from_toml({str(folder / 'tenantsync.toml')!r})\n"
        '@sync.on("*")\n'
        "def see(event, session):\n"
        f"    with Path({str(folder / 'seen')!r}).open('a') as file: print(event.id, file=file)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    file = folder / "tenantsync.toml"
    file.write_text('app = "shop_with_hooks:sync"\n' + file.read_text())
    sync.inbox.quarantine([arrival("id-of-acme", 1)])

    first = run("retry", *NO_HOOKS)
    assert (first.exit_code, (folder / "seen").exists()) == (0, False), first.output
    # Each command has a process of its own in real life.
    monkeypatch.delitem(sys.modules, "shop_with_hooks")
    sync.inbox.quarantine([arrival("id-of-globex", 2)])
    second = run("retry")
    monkeypatch.delitem(sys.modules, "shop_with_hooks")

    assert second.exit_code == 0, second.output
    assert (folder / "seen").read_text() == "e2\n"


def test_discard_asks_first(run, sync):
    """No is no; yes, or `--yes`, gives the events up and erases their bodies."""
    sync.inbox.quarantine([arrival("id-of-acme", 1), arrival("id-of-acme", 2)])
    sync.inbox.park([arrival("id-of-globex", 3)])
    first, second, third = numbers(run)

    no = run("discard", first, typed="n\n")
    assert (no.exit_code, listed(run, "--state", "discarded")) == (2, [])
    assert "1 event will never be applied" in no.output
    assert "nothing was done" in no.output

    yes = run("discard", first, typed="y\n")
    assert yes.exit_code == 0
    assert yes.output.splitlines()[-1] == "1 event discarded"
    assert sync.inbox.show(int(first)).body is None
    assert sync.inbox.show(int(second)).state is State.QUARANTINED

    rest = run("discard", "--tenant", "acme", "--yes")
    assert rest.output == "1 event discarded\n"
    assert listed(run, "--state", "parked") == ["e3"]
    assert run("discard", first, "--yes").output == "0 events discarded\n"
    assert third


def test_a_program_discards_without_being_asked(run, sync):
    """With --json it says how many, and it must have said --yes."""
    sync.inbox.park([arrival("id-of-acme", 1)])
    (first,) = numbers(run)

    refused = run("discard", first, "--json")
    done = run("discard", first, "--json", "--yes")

    assert (refused.exit_code, done.exit_code) == (2, 0)
    assert "give --yes beside --json" in refused.output
    assert json.loads(done.output) == {"discarded": 1}


def test_a_control_database_that_is_down_is_no_mistake_of_the_caller(run, folder):
    """The exit code is 1: asked rightly, and it did not work."""
    (folder / "tenantsync.toml").write_text(
        CONFIG + '[control]\nurl = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"\n'
    )
    for words in (
        ("list",),
        ("list", "--lanes"),
        ("show", "1"),
        ("retry", *NO_HOOKS),
        ("discard", "1", "--yes"),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert "the control database" in result.output


def test_the_program_of_the_documentation(capsys):
    """What docs/how-to/inbox.md shows does what it says."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "inbox.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)

    exec(compile(program, "inbox.md", "exec"), {})  # noqa: S102

    assert capsys.readouterr().out == "0 Counter()\n"


def make_older(sync: TenantSync, event_id: str, hours: float) -> None:
    """Let an event have come so many hours ago."""
    moment = datetime.now(UTC) - timedelta(hours=hours)
    with sync.control.write() as connection:
        connection.execute(
            update(inbox_table).where(inbox_table.c.event_id == event_id).values(received_at=moment)
        )
