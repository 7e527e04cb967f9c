"""The table of locks in ``docs/concurrency.md``, from what ``csi_driver`` says of each lock.

A comment on the lines above the assignment, or on its line::

    # Guards: _used_bytes, _evicted. No disk and no network while it is held.
    self._lock = threading.Lock()

or sentences in the docstring of the class::

    ``_lock`` guards ``_used_bytes`` and ``_evicted``; it is not held across disk or network. ``_evicting`` is held by
    the one thread that evicts.

The clauses behind the first that speak of what is done while the lock is held fill the last column. A condition on a
lock that has a row has none of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = {"Lock", "RLock", "Condition"}
COMMENT = re.compile(r"\bguards:? (?P<clauses>.+)$", re.IGNORECASE)
IN_DOCSTRING = re.compile(r"^(?:``(?P<field>_\w+)``|The lock) (?:guards |is (?=held))(?P<clauses>.+)$")
OF_HOLDING = re.compile(r"\b(held|under it|locks?|without it)\b")


@dataclass(frozen=True)
class LockField:
    """A field of a class that holds a lock, a condition, or a collection of locks."""

    cls: str
    field: str
    guards: str
    held: str


def _makes_a_lock(value: ast.expr) -> bool:
    """A condition on a lock of the class has an argument, and makes none."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in KINDS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "threading"
        and not node.args
        for node in ast.walk(value)
    )


def _comment(lines: list[str], first: int, last: int) -> str:
    """The comment at the statement of lines ``first`` to ``last`` (from 1): the lines above it, then the line's own."""
    above: list[str] = []
    for line in reversed(lines[: first - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    _, _, own = lines[last - 1].partition("  # ")
    return " ".join([*above, own]).strip()


def _clauses(text: str) -> list[str]:
    return [clause for clause in re.split(r"(?<=[.;]) +", " ".join(text.split())) if clause]


def _said(field: str, comment: str, docstring: str) -> list[str]:
    """Clauses about a lock: what it guards, then what is done while it is held; from the comment if it has them."""
    found = COMMENT.search(comment)
    if found is not None:
        return _clauses(found["clauses"])
    clauses = _clauses(docstring)
    for number, clause in enumerate(clauses):
        begin = IN_DOCSTRING.match(clause)
        if begin is None or begin["field"] not in (field, None):
            continue
        said = [begin["clauses"]]
        for following in clauses[number + 1 :]:
            if IN_DOCSTRING.match(following) or not OF_HOLDING.search(following):
                break
            said.append(following)
        return said
    return []


def _assignments(cls: ast.ClassDef) -> Iterator[tuple[str, ast.stmt, ast.expr]]:
    """Name, statement and value of each field that is assigned in the class."""
    for node in ast.walk(cls):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield ast.unparse(node.targets[0]).removeprefix("self."), node, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target).removeprefix("self."), node, node.value


def _cell(clauses: list[str]) -> str:
    return " ".join(clauses).rstrip(".;").replace("``", "`").replace("|", "\\|")


def locks(source: str, name: str) -> Iterator[LockField]:
    """The locks of a source file called ``name``. Raises ValueError for a lock about which nothing is said."""
    lines = source.splitlines()
    for cls in ast.walk(ast.parse(source)):
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, statement, value in _assignments(cls):
            if not _makes_a_lock(value):
                continue
            comment = _comment(lines, statement.lineno, statement.end_lineno or statement.lineno)
            said = _said(field, comment, ast.get_docstring(cls) or "")
            if not said:
                raise ValueError(
                    f"{name}:{statement.lineno}: say at {cls.name}.{field} which fields it guards: # Guards: …"
                )
            guards = [] if said[0].startswith("held") else said[:1]
            yield LockField(cls.name, field, _cell(guards), _cell(said[len(guards) :]))


def table(repository: Path) -> str:
    """Markdown, by package, file and line. Raises ValueError that names every lock about which nothing is said."""
    rows, silent = ["| lock | guards | while it is held |\n", "|---|---|---|\n"], []
    for path in sorted((repository / "csi_driver").rglob("*.py")):
        try:
            for lock in locks(path.read_text(), str(path.relative_to(repository))):
                rows.append(f"| `{lock.cls}.{lock.field}` | {lock.guards} | {lock.held} |\n")
        except ValueError as error:
            silent.append(str(error))
    if silent:
        raise ValueError("\n".join(silent))
    return "".join(rows)
