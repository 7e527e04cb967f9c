"""What the documents say about the repository is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.source_tree import REPOSITORY, modules, packages

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


def promises() -> list[str]:
    """The lines of the semantics that promise something."""
    text = (REPOSITORY / "docs" / "semantics.md").read_text()
    return [line for line in text.splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("promise", promises())
def test_every_promise_names_a_test_that_exists(promise: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
    assert named, "no test holds this promise"
    for path, function in named:
        assert (REPOSITORY / path).exists(), path
        if function:
            assert f"def {function}(" in (REPOSITORY / path).read_text(), f"{path}::{function}"


def test_every_package_has_a_line_in_the_table_of_rooms() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    described = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert packages() - {"cli", "settings", "telemetry"} <= described


def test_every_target_of_the_makefile_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page


def locks() -> set[str]:
    """``Class._field`` of every lock that a class of the driver makes."""
    found = set()
    for module in modules():
        for cls in (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(cls):
                if isinstance(node, ast.Assign) and re.match(
                    r"threading\.(R?Lock|Condition)\(", ast.unparse(node.value)
                ):
                    found.add(f"{cls.name}.{ast.unparse(node.targets[0]).removeprefix('self.')}")
    return found


def test_every_lock_is_in_the_page_about_concurrency_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "concurrency.md").read_text()
    described = set(re.findall(r"^\| `(\w+\._\w+)` \|", page, re.MULTILINE))
    assert described == locks() - {"MemoryStore._lock"}
