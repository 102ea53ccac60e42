"""docs/reference/cli.md and the command line itself name the same commands and options."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from tenantsync.cli import commands

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
"""An option as it is written on a command line."""

EVERYWHERE = {"-c", "--config", "-h", "--help"}
"""What the page says once, at its top."""


def leaves(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, with the words that call it."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    for name, each in command.commands.items():
        yield from leaves(each, *path, name)


def options_of(command: click.Command) -> set[str]:
    """Return every spelling of a command's options."""
    return {
        spelling
        for each in command.params
        if isinstance(each, click.Option)
        for spelling in (*each.opts, *each.secondary_opts)
    }


def codes(text: str) -> list[str]:
    """Return what stands between backquotes."""
    return re.findall(r"`([^`]+)`", text)


def told(text: str) -> set[str]:
    """Return the options in what stands between backquotes."""
    return {option for code in codes(text) for option in OPTION.findall(code)}


def sections(page: str) -> Mapping[str, str]:
    """Return the text about each command that stands right below `tenantsync`."""
    found = re.findall(
        r"^## `tenantsync ([a-z-]+)[^`]*`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    )
    assert len(found) == len(dict(found))
    return dict(found)


def rows(section: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row of a section's tables by its headers, and the line that stands above it."""
    above, headers = "", []
    for line in section.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            above, headers = line or above, []
        elif not headers:
            headers = cells
        elif not set(line) <= {"|", "-"}:
            yield above, dict(zip(headers, cells, strict=True))


def documented(page: str) -> dict[str, set[str]]:
    """Return the options that the page gives to each command.

    A row of options is about the commands in its column "Of"; without that, about those in the
    heading or line above its table; or the section is of one command.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, section in sections(page).items():
        tables = list(rows(section))
        inner = [codes(row["Command"])[0].split()[0] for _, row in tables if "Command" in row]
        if not inner:
            found[name] = set()
        for above, row in tables:
            if "Command" in row:
                word = codes(row["Command"])[0].split()[0]
                found[f"{name} {word}"] |= told(row["Command"]) | told(row["What it does"])
            elif "Option" in row:
                about = [word for word in codes(row.get("Of", above)) if word in inner]
                for path in [f"{name} {word}" for word in about] if inner else [name]:
                    found[path] |= told(row["Option"])
    return found


COMMANDS = dict(leaves(commands))


def test_the_reference_has_every_command() -> None:
    """No command is left out of the page, and none is on it that is not there any more."""
    assert set(documented(PAGE.read_text())) == set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_the_reference_has_every_option(path: str) -> None:
    """A command has exactly the options that the page gives it."""
    assert documented(PAGE.read_text())[path] == options_of(COMMANDS[path]) - EVERYWHERE


def test_the_reference_says_who_takes_a_configuration() -> None:
    """The sentence at the top of the page names just those commands that do without a file."""
    page = PAGE.read_text()
    sentence = re.search(r"^Every command but (.*?) takes `-c FILE`", page, re.MULTILINE)

    assert sentence is not None
    assert set(codes(sentence[1])) == {
        path for path, command in COMMANDS.items() if "-c" not in options_of(command)
    }


def test_the_reference_says_the_defaults() -> None:
    """A default that `--help` shows stands on the page too, where its table has a column for it."""
    page = sections(PAGE.read_text())
    wrong = []
    compared = 0
    for path, command in COMMANDS.items():
        name, _, word = path.partition(" ")
        for above, row in rows(page[name]):
            if "Default" not in row or (word and word not in codes(row.get("Of", above))):
                continue
            for option in command.params:
                shown = isinstance(option, click.Option) and option.show_default
                if shown and not option.required and told(row["Option"]) & set(option.opts):
                    compared += 1
                    if row["Default"].strip("`") != f"{option.default}".removesuffix(".0"):
                        wrong.append(f"{path} {option.opts[0]}: {option.default}")
    assert wrong == []
    assert compared > 10
