"""Where the range of keys between two keys is divided for a parallel listing: functions of values."""

from __future__ import annotations

_LEAST, _MOST = 0x20, 0x7E
"""Characters of the keys at which ranges begin: printable ASCII, which every store takes in a request."""

_KINDS = (range(0x30, 0x3A), range(0x41, 0x5B), range(0x61, 0x7B))
"""Digits and letters. Where a key has one of a kind, other keys mostly have one of the same kind."""

_LONGEST = 1000
"""Of such a key; S3 takes 1,024 bytes."""


def midpoint(last: str, edge: str | None, prefix: str) -> str | None:
    """A key above ``last`` and below ``edge``, about halfway; None if there is none of printable characters that is
    worth a request. Both begin with ``prefix``; ``edge`` None: the end of all keys with the prefix.

    Halfway in the first character in which the two differ, among digits or letters if ``last`` has one there; where no
    character lies between these, in the one after it, and so on: so the range of a single directory, or of numbered
    files, is divided too.
    """
    at = len(prefix)
    if edge is not None:
        shortest = min(len(last), len(edge))
        while at < shortest and last[at] == edge[at]:
            at += 1
        if at == len(edge):
            return None
    high = _MOST + 1 if edge is None else min(ord(edge[at]), _MOST + 1)
    while at < _LONGEST:
        low = ord(last[at]) if at < len(last) else _LEAST - 1
        for stop in (_stop_of_kind(low, high), high):
            middle = (max(low, _LEAST - 1) + stop) // 2
            if low < middle < stop:
                return last[:at] + chr(middle)
        if at >= len(last):
            return None
        at, high = at + 1, _MOST + 1
    return None


def _stop_of_kind(character: int, high: int) -> int:
    """The end of the digits or letters that the character is one of, if that is not above ``high``."""
    return next((kind.stop for kind in _KINDS if character in kind and kind.stop <= high), high)


def width(last: str, edge: str | None, prefix: str) -> float:
    """The part of all keys with the prefix that lies between the two, if keys were spread evenly; for comparisons."""
    return max(0.0, _place(edge, prefix) - _place(last, prefix))


def _place(key: str | None, prefix: str) -> float:
    """Between 0 and 1."""
    if key is None:
        return 1.0
    place, share = 0.0, 1.0
    for character in key[len(prefix) : len(prefix) + 10]:
        share /= _MOST + 2
        place += share * min(ord(character), _MOST + 1)
    return place
