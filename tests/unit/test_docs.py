"""The pages of the documentation lead to each other: no link is dead, no page is unreachable."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))


def prose(page: Path) -> str:
    """Return a page without its blocks of code, in which nothing is a link or a heading."""
    return re.sub(r"^(```|~~~).*?^\1`*$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield each relative link of a page: as written, the file that it means, and the anchor."""
    text = re.sub(r"`[^`\n]*`", "`", prose(page))
    written = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    written += re.findall(r"^\s*\[[^\]]+\]:\s*<?([^\s>]+)", text, re.MULTILINE)
    for link in written:
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        yield link, (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings; the second of a name gets `-1`."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def dead_links(page: Path, root: Path = ROOT) -> list[str]:
    """Return the relative links that lead to no file below the root, or to no heading of it."""
    dead = []
    for link, target, anchor in links(page):
        found = target.is_relative_to(root) and target.exists()
        if not found or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    """Each relative link leads to a file or folder of the project, and to a heading that it has."""
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    """What the test above looks for is seen, and what is no link of ours is left alone."""
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "outside.md").touch()
    (root / "other.md").write_text("# The `key`, twice\n\n## Why?\n## Why?\n")
    page = root / "page.md"
    page.write_text(
        "# Here\n[good](other.md#the-key-twice), [`good`](other.md#why-1), [good](#here)\n"
        "[good](https://example.test/gone.md), `[no link](gone.md)`\n"
        "```text\n# No heading\n[no link](gone.md)\n```\n"
        "[bad](gone.md), ![bad](gone.png), [bad](other.md#why-2), [bad](#no-heading)\n"
        "[bad](../outside.md)\n"
    )

    assert dead_links(page, root) == [
        *("gone.md", "gone.png", "other.md#why-2", "#no-heading", "../outside.md"),
    ]


def test_every_page_is_in_the_index() -> None:
    """Whoever begins at docs/README.md can reach each page with one click."""
    linked = {target for _, target, _ in links(INDEX)}

    assert [
        str(page.relative_to(DOCS))
        for page in sorted(DOCS.rglob("*.md"))
        if page != INDEX and page not in linked
    ] == []
