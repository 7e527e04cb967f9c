"""Attributes in records, in a form that the version before reads.

The version before refuses a parameter that it does not know, and a record with one would be lost to it: the mount below
its readers, or the volume. So a record holds what that version understands under the name that it reads, and the rest
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

_SINCE = frozenset({"profile", "readAhead", "wholeFiles", "warmupMemoryInclude", "warmupTrace"})
"""Names that the version before does not know."""

_BEFORE = {("warmup", "memory"): "wait"}
"""Values that the version before does not know, and what it gets instead."""


def split_attributes(attributes: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the version before reads, and what replaces or extends it for this one."""
    since = {name: value for name, value in attributes.items() if name in _SINCE or (name, value) in _BEFORE}
    before = {name: _BEFORE.get((name, value), value) for name, value in attributes.items() if name not in _SINCE}
    return before, since


def joined_attributes(before: Mapping[str, str], since: Mapping[str, str]) -> dict[str, str]:
    """The inverse of ``split_attributes``."""
    return {**before, **since}
