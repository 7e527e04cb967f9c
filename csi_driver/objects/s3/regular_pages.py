"""Reads the entries of a page of ListObjectsV2 by one regular expression, which is made of the first entry: stores
write the same elements in the same order in each. Half of the time of an expression for each column."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from csi_driver.model.entity_tags import MOST_CHARACTERS

_OPEN, _CLOSE = "<Contents>", "</Contents>"
_FIELDS = ("Key", "Size", "ETag", "LastModified", "StorageClass")
_REQUIRED = frozenset(_FIELDS[:4])
_PIECE = re.compile(r"<(/?[A-Za-z]+)>([^<]*)")
_LONGEST_ENTRY = 16 << 10
"""A key has 1,024 bytes, which may be three times as long when they are encoded."""


class RegularEntries(NamedTuple):
    """The columns, their texts as they are written in the page; ``etags`` without quotes."""

    keys: list[str]
    sizes: list[str]
    etags: list[str]
    times: list[str]
    storage_classes: frozenset[str]
    around: str
    """The page without the entries."""


class _Shape(NamedTuple):
    """Of an entry: an expression, and the columns of its groups."""

    expression: re.Pattern[str]
    columns: tuple[str, ...]


def regular_entries(text: str) -> RegularEntries | None:
    """The entries of a page. None unless they lie one after the other, all have the elements of the first one, which
    are no nested ones but for constants, and their ETags are plain digests in quotes."""
    first, last = text.find(_OPEN), text.rfind(_CLOSE) + len(_CLOSE)
    shape = _shape(text[first : text.find(_CLOSE, first) + len(_CLOSE)]) if 0 <= first < last else None
    if shape is None:
        return None
    around = text[:first] + text[last:]
    if "<!" in around or _OPEN[:-1] in around:
        return None
    # What lies between two entries, and then their fields, in one list: tuples of fields would cost as much again.
    pieces = shape.expression.split(text[first:last])
    step = len(shape.columns) + 1
    if any(pieces[::step]):  # an entry was not matched, or something lies between two
        return None
    columns = {name: pieces[place::step] for place, name in enumerate(shape.columns, start=1)}
    etags, joined = columns["ETag"], "".join(columns["ETag"])
    plain = joined.isascii() and joined.replace("-", "").encode("ascii").isalnum() and all(etags)
    if not plain or max(map(len, etags)) > MOST_CHARACTERS:
        return None
    classes = frozenset(columns.get("StorageClass", ()))
    return RegularEntries(columns["Key"], columns["Size"], etags, columns["LastModified"], classes, around)


def _shape(entry: str) -> _Shape | None:
    """Of the elements of an entry. What is no field is a constant: the same in each entry, or the page is another."""
    if len(entry) > _LONGEST_ENTRY:
        return None
    pieces = _PIECE.findall(entry)
    if "".join(f"<{tag}>{text}" for tag, text in pieces) != entry:
        return None
    parts: list[tuple[str, str]] = []
    for tag, text in pieces:
        if tag not in _FIELDS:
            parts.append((f"<{tag}>{text}", ""))
        elif tag == "ETag":
            if not (text.startswith("&quot;") and text.endswith("&quot;") and len(text) > 12):
                return None
            parts += [("<ETag>&quot;", tag), ("&quot;", "")]
        else:
            parts.append((f"<{tag}>", tag))
    return _compiled(tuple(parts))


@lru_cache(maxsize=64)
def _compiled(parts: tuple[tuple[str, str], ...]) -> _Shape | None:
    """Of constants, each with the field that follows it."""
    columns = tuple(field for _, field in parts if field)
    if len(set(columns)) != len(columns) or not set(columns) >= _REQUIRED:
        return None
    # No group goes past the sign that ends it, so the time grows with the length of the page.
    groups = {"": "", "ETag": "([^&]*+)"}
    expression = "".join(re.escape(constant) + groups.get(field, "([^<]*+)") for constant, field in parts)
    return _Shape(re.compile(expression), columns)
