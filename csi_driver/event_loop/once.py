"""Work that exactly one of several threads does."""

from __future__ import annotations


class Once:
    """Work that several threads may find: the first one that calls ``claim`` does it. Needs no lock."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = [None]

    def claim(self) -> bool:
        """True for the first caller only."""
        try:
            self._tokens.pop()  # atomic: list.pop is one step under the interpreter lock
        except IndexError:
            return False
        return True

    @property
    def claimed(self) -> bool:
        """True as soon as a thread has claimed it."""
        return not self._tokens
