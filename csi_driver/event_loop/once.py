"""Work that exactly one of several threads does."""

from __future__ import annotations


class Once:
    """Work that several threads may find and one of them does: the first that calls ``take``. Needs no lock."""

    __slots__ = ("_claims",)

    def __init__(self) -> None:
        self._claims = [None]

    def take(self) -> bool:
        """True for the first caller only. Atomic: list.pop is one step under the interpreter's lock."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    @property
    def waiting(self) -> bool:
        """True until a thread has taken it."""
        return bool(self._claims)
