"""The table of locks, from the comments at the locks of ``csi_driver``.

A comment begins on the line above the assignment, or follows on the same line::

    # Guards: _used_bytes, _evicted. While held: no disk, no network.
    self._lock = threading.Lock()

``While held`` says what may not be done, or which other locks are taken; it may be left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = {"Lock", "RLock", "Condition"}
COMMENT = re.compile(r"guards:? +(?P<guards>.+?)(?:[.;]? *while held: *(?P<held>.+?))?\.?$", re.IGNORECASE)


@dataclass(frozen=True)
class LockField:
    """A field of a class that holds a lock, a condition, or a collection of locks."""

    cls: str
    field: str
    guards: str
    held: str


def _makes_a_lock(value: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in KINDS
        and isinstance(node.value, ast.Name)
        and node.value.id == "threading"
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


def _assignments(cls: ast.ClassDef) -> Iterator[tuple[str, ast.stmt, ast.expr]]:
    """Name, statement and value of each field that is assigned in the class."""
    for node in ast.walk(cls):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            yield ast.unparse(node.targets[0]).removeprefix("self."), node, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target).removeprefix("self."), node, node.value


def locks(source: str, name: str) -> Iterator[LockField]:
    """The locks of a source file called ``name``. Raises ValueError for a lock without a comment."""
    lines = source.splitlines()
    for cls in ast.walk(ast.parse(source)):
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, statement, value in _assignments(cls):
            if not _makes_a_lock(value):
                continue
            found = COMMENT.search(_comment(lines, statement.lineno, statement.end_lineno or statement.lineno))
            if found is None:
                raise ValueError(
                    f"{name}:{statement.lineno}: {cls.name}.{field} has no comment '# Guards: … While held: …'"
                )
            yield LockField(cls.name, field, found["guards"], found["held"] or "")


def table(repository: Path) -> str:
    """Markdown, sorted by package, file and line."""
    rows = ["| lock | guards | while it is held |\n", "|---|---|---|\n"]
    for path in sorted((repository / "csi_driver").rglob("*.py")):
        for lock in locks(path.read_text(), str(path.relative_to(repository))):
            rows.append(f"| `{lock.cls}.{lock.field}` | {lock.guards} | {lock.held} |\n")
    return "".join(rows)
