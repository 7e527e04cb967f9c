"""Keys that a directory tree cannot show unchanged: renamed or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from csi_driver.catalog.key_names import Reason

EXAMPLES = 1_000
"""Keys that are reported for each reason; the counts include all."""


@dataclass(frozen=True, slots=True)
class RenamedKey:
    """An object with a path that differs from its key. Both are below the prefix."""

    key: bytes
    path: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class LeftOutKey:
    """An object that is not shown. The key is the part below the prefix."""

    key: bytes
    reason: Reason


@dataclass(frozen=True, slots=True)
class KeyReport:
    """Counts include all keys; the lists hold the first ``EXAMPLES`` of each reason, in order."""

    objects_listed: int
    not_selected: int
    """Objects that the globs do not select."""
    directory_markers: int
    """Objects that stand for a directory: keys that end in a slash, and objects without bytes (``docs/keys.md``)."""
    duplicates: int
    """How often a key was listed again."""
    renamed_counts: Mapping[Reason, int]
    left_out_counts: Mapping[Reason, int]
    renamed: tuple[RenamedKey, ...]
    left_out: tuple[LeftOutKey, ...]

    @property
    def renamed_total(self) -> int:
        return sum(self.renamed_counts.values())

    @property
    def left_out_total(self) -> int:
        return sum(self.left_out_counts.values())


class LeftOutKeys:
    """Counts all left out keys, and stores the first ``EXAMPLES`` of each reason in byte order, which are the same for
    any order of the listing."""

    def __init__(self) -> None:
        self.counts: Counter[Reason] = Counter()
        self._examples: dict[Reason, list[bytes]] = {}

    def add(self, key: bytes, reason: Reason) -> None:
        self.counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        examples.append(key)
        if len(examples) >= 2 * EXAMPLES:
            examples.sort()
            del examples[EXAMPLES:]

    def examples(self) -> tuple[LeftOutKey, ...]:
        return tuple(
            LeftOutKey(key, reason)
            for reason in sorted(self._examples)
            for key in sorted(self._examples[reason])[:EXAMPLES]
        )
