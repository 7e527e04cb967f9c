"""docs/stores.md is of the stores and checks that there are. What it says of them is from a run of `make stores`."""

from __future__ import annotations

import ast

from tests.architecture.source_tree import REPOSITORY
from tests.stores.conformance import COLUMNS

PAGE = (REPOSITORY / "docs" / "stores.md").read_text()
REMEDY = "run: make stores"


def titles() -> set[str]:
    """Of the servers, as their classes say."""
    found = set()
    for path in (REPOSITORY / "tests" / "stores").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "title":
                found.add(ast.literal_eval(node.value))
    return found


def test_every_store_has_its_row() -> None:
    assert {title for title in titles() if f"\n| {title}" not in PAGE} == set(), REMEDY


def test_every_check_has_its_column_and_its_explanation() -> None:
    headers = " | ".join(header for header, _ in COLUMNS.values())
    assert f"| {headers} |" in PAGE, REMEDY
    assert all(f"| {header} | {explanation} |" in PAGE for header, explanation in COLUMNS.values()), REMEDY
