"""What a parameter of a command's function is on the command line. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """``--name``, or ``--name/--no-name`` of a boolean one."""

    names: str
    text: str
    variable: str | None = None
    """The environment variable that sets it too."""
    panel: str | None = None
    """Of ``--help``."""
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Positional:
    """An argument without a name."""

    text: str
