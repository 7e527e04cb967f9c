"""Pages of a list of records. A token names the last record of the page before it, so it stays valid when records are
added or deleted, in another process, and after a restart."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from csi_driver.model.errors import InvalidParameter, PageTokenInvalid

T = TypeVar("T")

_TOKEN = re.compile(r"after:([a-z0-9_][a-z0-9._-]{0,119})\Z")


class RecordPage(NamedTuple, Generic[T]):
    """Records, and the token of the next page; empty after the last."""

    entries: list[T]
    next_token: str


def page_of(
    names: Iterable[str], read: Callable[[str], T | None], wanted: Callable[[T], bool], *, most: int, token: str
) -> RecordPage[T]:
    """At most ``most`` records (0: any number) after the token, by name. Reads the records that it returns, and those
    that are not ``wanted`` between them. Raises InvalidParameter, PageTokenInvalid, and what ``read`` raises."""
    if most < 0:
        raise InvalidParameter("max_entries", most, "0 or more; 0: no limit")
    ordered = sorted(names)
    start = bisect_right(ordered, _after(token)) if token else 0
    entries: list[T] = []
    last = ""
    for position in range(start, len(ordered)):
        record = read(ordered[position])
        if record is None or not wanted(record):
            continue
        if most and len(entries) == most:
            return RecordPage(entries, f"after:{last}")
        entries.append(record)
        last = ordered[position]
    return RecordPage(entries, "")


def _after(token: str) -> str:
    found = _TOKEN.match(token)
    if found is None:
        raise PageTokenInvalid("starting_token: is no token of a page of this list; list again without one")
    return found[1]
