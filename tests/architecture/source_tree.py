"""What the source says without being run: the modules of the package, their imports, and the names they use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "csi_driver"
GENERATED = PACKAGE / "rpc" / "pb"


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    path: Path

    @property
    def package(self) -> str:
        """The part of csi_driver that it belongs to: ``fuse`` for csi_driver/fuse/session.py, ``cli`` for cli.py."""
        return self.path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    def __str__(self) -> str:
        return str(self.path.relative_to(REPOSITORY))

    def imports(self) -> Iterator[str]:
        """Dotted names of what is imported, wherever in the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module

    def attributes(self) -> Iterator[str]:
        """Names after a dot, and imported names: ``ioctl`` in ``fcntl.ioctl`` and in ``from fcntl import ioctl``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                yield node.attr
            elif isinstance(node, ast.ImportFrom):
                yield from (alias.name for alias in node.names)

    def texts(self) -> Iterator[str]:
        """All string constants."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value

    def public_classes(self) -> Iterator[str]:
        """Names of the classes at the top of the file without a leading underscore."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package that is not generated."""
    return tuple(Module(path) for path in sorted(PACKAGE.rglob("*.py")) if GENERATED not in path.parents)


def packages() -> set[str]:
    """The parts of csi_driver: sub-packages and the modules beside them."""
    return {module.package for module in modules()} - {"__init__", "__main__"}
