"""The appendix of ``docs/semantics.md``: which tests hold which promise.

A promise is a line ``- **S12** …`` of the page. A test holds it with ``@pytest.mark.promise("S12")``; a file of which
every test does says ``pytestmark = pytest.mark.promise("S12")``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

PAGE = Path("docs/semantics.md")
PROMISE = re.compile(r"^- \*\*(S\d+)\*\* ", re.MULTILINE)


def _promises_of(mark: ast.expr) -> Iterator[str]:
    """Numbers in ``pytest.mark.promise(…)``, wherever in the expression."""
    for node in ast.walk(mark):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
            yield from (str(ast.literal_eval(argument)) for argument in node.args)


def marks(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Promise and test id, for each mark in a source file called ``name``."""
    tree = ast.parse(source)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark":
            yield from ((promise, name) for promise in _promises_of(statement.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from ((promise, f"{name}::{node.name}") for promise in _promises_of(decorator))


def _number(promise: str) -> int:
    return int(promise.removeprefix("S"))


def table(repository: Path) -> str:
    """Markdown, by number. Raises ValueError for a promise without a test, a mark without a promise, a number that is
    given twice."""
    promised = Counter(PROMISE.findall((repository / PAGE).read_text()))
    tests: dict[str, list[str]] = defaultdict(list)
    for path in sorted((repository / "tests").rglob("*.py")):
        for promise, test in marks(path.read_text(), str(path.relative_to(repository))):
            tests[promise].append(test)
    wrong = [f"{PAGE}: {promise} is there {count} times" for promise, count in promised.items() if count > 1]
    wrong += [f"{PAGE}: no test holds {promise}" for promise in promised.keys() - tests.keys()]
    wrong += [f"{tests[promise][0]}: {PAGE} has no {promise}" for promise in tests.keys() - promised.keys()]
    if wrong:
        raise ValueError("\n".join(sorted(wrong)))
    rows = ["| promise | tests |\n", "|---|---|\n"]
    for promise in sorted(tests, key=_number):
        rows.append(f"| {promise} | {'<br>'.join(f'`{test}`' for test in tests[promise])} |\n")
    return "".join(rows)
