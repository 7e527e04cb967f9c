"""Whether an object of a mirror has the bytes of the one that was listed: a function of values.

ETags of two stores are comparable only where both are made of the content in the same way: the MD5 of an object that
was put at once, or that of the MD5s of its parts. Otherwise a checksum that both stores keep decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from csi_driver.objects.checksums import MD5, Checksum, StoredChecksum, md5_of_etag

_OF_CONTENT = re.compile(r"[0-9a-fA-F]{32}(?:-[1-9][0-9]{0,4})?\Z")


class SameBy(StrEnum):
    """The rule by which an object of a mirror counts as the same."""

    ETAG = "etag"
    """Both stores give it the same ETag, made of its bytes."""
    CHECKSUM = "checksum"
    """Both stores keep the same checksum of all bytes."""
    SIZE = "size"
    """It has the same size, and the volume's ``mirrorCheck`` says that this is enough."""


@dataclass(frozen=True, slots=True)
class ObjectEvidence:
    """What a store says of the bytes of an object."""

    etag: str | None
    stored: StoredChecksum | None = None
    """None: not asked."""

    @property
    def checksums(self) -> dict[str, bytes]:
        """Those that the store keeps of all bytes, by algorithm."""
        stored = self.stored
        return {} if stored is None else {each.algorithm: each.value for each in _all(stored)}

    @property
    def md5s(self) -> frozenset[bytes]:
        """What may be an MD5 of the bytes: equality of two is no accident, a difference says nothing."""
        guess, known = md5_of_etag(self.etag), self.checksums.get(MD5)
        return frozenset(value for value in (known, guess and guess.value) if value)


def is_of_content(etag: str | None) -> bool:
    """Whether an ETag has the form of those that are made of the bytes, so that a mirror may have the same one."""
    return etag is not None and _OF_CONTENT.match(etag) is not None


def same_by(listed: ObjectEvidence, mirrored: ObjectEvidence) -> SameBy | None:
    """The rule by which both have the same bytes, without that of sizes. None: nothing shows it, or they differ."""
    if is_of_content(listed.etag) and listed.etag == mirrored.etag:
        return SameBy.ETAG
    ours, theirs = listed.checksums, mirrored.checksums
    shared = ours.keys() & theirs.keys()
    if shared:
        return SameBy.CHECKSUM if all(ours[name] == theirs[name] for name in shared) else None
    return SameBy.CHECKSUM if listed.md5s & mirrored.md5s else None


def differ(listed: ObjectEvidence, mirrored: ObjectEvidence) -> bool:
    """Whether a checksum shows that the bytes are others."""
    ours, theirs = listed.checksums, mirrored.checksums
    return any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())


def _all(stored: StoredChecksum) -> tuple[Checksum, ...]:
    return stored.every or (() if stored.checksum is None else (stored.checksum,))
