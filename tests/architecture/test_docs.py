"""Links and commands of the documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY, packages

PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
)


def links(page: Path) -> list[str]:
    """Targets inside the repository, without anchors."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_every_promise_that_the_page_on_security_names_is_one() -> None:
    """A range names its ends: S150 to S155."""
    promised = set(re.findall(r"^- \*\*(S\d+)\*\*", (REPOSITORY / "docs" / "semantics.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bS\d+\b", (REPOSITORY / "docs" / "security.md").read_text())) - {"S3"}
    assert named - promised == set()


def test_every_package_is_in_the_table_of_rooms() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    described = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert packages() - {"settings", "telemetry"} <= described


def test_every_target_of_the_makefile_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z0-9]+(?:-[a-z]+)*)", page.read_text(), re.MULTILINE))
        assert named <= targets, page
