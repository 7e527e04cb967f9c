"""Maps keys to paths: one rule for each kind of key that is not a valid path. ``docs/keys.md`` explains them to users.

A name in the mount is never empty, ``.`` or ``..``, holds neither ``/`` nor NUL and has at most 255 bytes.
``shown_path`` makes no other, so that a key cannot lead out of its mount.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

NAME_LIMIT_BYTES = 255
"""NAME_MAX of Linux."""

PATH_LIMIT_BYTES = 3840
"""PATH_MAX of Linux, 4,096, less 256 for the path of the mount point."""

EXTENSION_LIMIT_BYTES = 16
"""Extensions up to this length, with the dot, survive a change of the name: loaders select files by them."""


FOLDER_SUFFIX = b"_$folder$"
"""Of the objects without bytes that Hadoop's older clients write for directories."""


class Reason(StrEnum):
    """Why an object is not shown under its own key, or is left out."""

    EMPTY_PART = "empty-part"
    DOT_PART = "dot-part"
    NUL_BYTE = "nul-byte"
    LONG_PART = "long-part"
    DIRECTORY_TOO = "directory-too"
    NAME_TAKEN = "name-taken"
    LONG_PATH = "long-path"
    MARKER_WITH_BYTES = "marker-with-bytes"
    NO_FREE_NAME = "no-free-name"
    UNREADABLE = "unreadable"
    NO_SIZE = "no-size"
    OUTSIDE_PREFIX = "outside-prefix"
    NO_TEXT = "no-text"

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Reason.EMPTY_PART: "a part of the key is empty",
    Reason.DOT_PART: "a part of the key is . or ..",
    Reason.NUL_BYTE: "the key has a NUL byte",
    Reason.LONG_PART: "a part of the key is longer than 255 bytes",
    Reason.DIRECTORY_TOO: "the key is also the directory of other keys",
    Reason.NAME_TAKEN: "another object has the name already",
    Reason.LONG_PATH: "the path is longer than 3,840 bytes",
    Reason.MARKER_WITH_BYTES: "the key ends in a slash, so it is a directory, but the object has bytes",
    Reason.NO_FREE_NAME: "every name that the rules give is taken",
    Reason.UNREADABLE: "the server names it, and does not give it, its size or its name",
    Reason.NO_SIZE: "the store lists no size, or one that no object can have",
    Reason.OUTSIDE_PREFIX: "the store lists it, although it is not below the prefix",
    Reason.NO_TEXT: "the key is not valid text",
}


def marked_directory(key: bytes, size_bytes: int) -> bytes | None:
    """The key of the directory that an object stands for, without the slash at its end. None: the object is a file, as
    far as its key and size tell."""
    if key.endswith(b"/") or not key:
        return key[:-1]
    if key.endswith(FOLDER_SUFFIX) and not size_bytes:
        # "a/_$folder$" stands for "a/".
        return key.removesuffix(FOLDER_SUFFIX).removesuffix(b"/")
    return None


@dataclass(frozen=True, slots=True)
class Shown:
    """Path below the root of the mount, and the reason why it differs from the key (None: it does not)."""

    path: bytes
    reason: Reason | None


def all_plain(keys: Sequence[bytes]) -> bool:
    """Whether every key is a valid path unchanged. Four searches through one buffer, not a test per key."""
    text = b"/" + b"/".join(keys) + b"/"
    if b"//" in text or b"/./" in text or b"/../" in text or b"\0" in text:
        return False
    return max(map(len, keys), default=0) <= NAME_LIMIT_BYTES or all(map(_parts_fit, keys))


def _parts_fit(key: bytes) -> bool:
    if len(key) <= NAME_LIMIT_BYTES:
        return True
    return len(key) <= PATH_LIMIT_BYTES and max(map(len, key.split(b"/"))) <= NAME_LIMIT_BYTES


def shown_path(key: bytes) -> Shown:
    """The path of a key below the prefix that does not end in a slash. Does not limit its length."""
    if all_plain((key,)):
        return Shown(key, None)
    reason = None
    parts = []
    for part in key.split(b"/"):
        shown, why = _shown_part(part)
        parts.append(shown)
        reason = reason or why
    return Shown(b"/".join(parts), reason)


def _shown_part(part: bytes) -> tuple[bytes, Reason | None]:
    if not part:
        return b"%2F", Reason.EMPTY_PART
    if part in (b".", b".."):
        return part.replace(b".", b"%2E"), Reason.DOT_PART
    shown, reason = part, None
    if b"\0" in part:
        shown, reason = part.replace(b"\0", b"%00"), Reason.NUL_BYTE
    if len(shown) > NAME_LIMIT_BYTES:
        return marked(shown, part, 16), reason or Reason.LONG_PART
    return shown, reason


def marked(name: bytes, identity: bytes, digits: int) -> bytes:
    """``stem~0123abcd.ext``: a name of at most 255 bytes that is made unique by a hash of ``identity``."""
    mark = b"~" + hashlib.blake2b(identity, digest_size=digits // 2).hexdigest().encode()
    stem, extension = _split_extension(name)
    return _truncated(stem, NAME_LIMIT_BYTES - len(mark) - len(extension)) + mark + extension


def _split_extension(name: bytes) -> tuple[bytes, bytes]:
    dot = name.rfind(b".")
    if dot <= 0 or len(name) - dot > EXTENSION_LIMIT_BYTES:
        return name, b""
    return name[:dot], name[dot:]


def _truncated(text: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes, without a partial UTF-8 character at the end."""
    if len(text) <= limit:
        return text
    cut = limit
    while cut > limit - 4 and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return text[:cut]


def is_text(text: str) -> bool:
    """Whether it can be encoded: JSON may hold halves of a surrogate pair."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
