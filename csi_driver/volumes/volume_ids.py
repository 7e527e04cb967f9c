"""Volume ids: the ids of dynamic volumes, the check of foreign ids, and file names for ids of any characters."""

from __future__ import annotations

import hashlib
import re

from csi_driver.model.errors import InvalidParameter, MissingParameter

MAX_FOREIGN_ID_BYTES = 4096
"""More than the 128 bytes that CSI requires: the author of a PersistentVolume chooses the id of a static volume."""

_DYNAMIC = re.compile(r"hayloft-[a-z0-9.-]*-[0-9a-f]{16}\Z")
_INLINE = re.compile(r"csi-[0-9a-f]{64}\Z")
_SAFE = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}\Z")
_READABLE_LENGTH = 80


def dynamic_volume_id(name: str) -> str:
    """The id of the volume that CreateVolume makes for a name. Deterministic, readable, safe as a file name, and at
    most 128 bytes, the limit of CSI. Raises MissingParameter, InvalidParameter."""
    check_id("name", name)
    readable = re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_READABLE_LENGTH].strip("-.")
    return f"hayloft-{readable}-{_digest(name, 8)}"


def snapshot_id_of(name: str) -> str:
    """The id of the snapshot that CreateSnapshot makes for a name; as ``dynamic_volume_id``."""
    return _made_id("snapshot", name)


def group_id_of(name: str) -> str:
    """The id of the group of snapshots that CreateVolumeGroupSnapshot makes for a name; as ``dynamic_volume_id``."""
    return _made_id("group", name)


def member_id(group_id: str, volume_id: str) -> str:
    """The id of the snapshot of one volume in a group."""
    return f"snapshot-{group_id[:_READABLE_LENGTH].strip('-.')}-{_digest(f'{group_id} {volume_id}', 8)}"


def _made_id(kind: str, name: str) -> str:
    check_id("name", name)
    readable = re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_READABLE_LENGTH].strip("-.")
    return f"{kind}-{readable}-{_digest(f'{kind} {name}', 8)}"


def readable_part(volume_id: str) -> str:
    """Of a dynamic volume's id the part that comes from its name, which is that of its PersistentVolume; any other id
    as it is."""
    return volume_id[len("hayloft-") : -17] or volume_id if is_dynamic_volume_id(volume_id) else volume_id


def is_dynamic_volume_id(volume_id: str) -> bool:
    """Whether the id has the form of ``dynamic_volume_id``."""
    return _DYNAMIC.match(volume_id) is not None


def is_inline_volume_id(volume_id: str) -> bool:
    """Whether kubelet made the id, for an inline volume: then it belongs to one pod on one node and is not reused."""
    return _INLINE.match(volume_id) is not None


def check_id(field: str, text: str) -> None:
    """Raises MissingParameter for an empty id, InvalidParameter for one that is too long or has control characters."""
    if not text:
        raise MissingParameter(field)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FOREIGN_ID_BYTES:
        raise InvalidParameter(field, f"{text[:64]}…", f"at most {MAX_FOREIGN_ID_BYTES} bytes")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InvalidParameter(field, text, "text without control characters")


def file_name(volume_id: str) -> str:
    """A file name (or part of a key) for an id: one path component, not hidden, at most 100 characters, unique.

    Ids that are safe as file names stay unchanged. All others get a digest and a leading underscore, which no safe id
    has, so the two kinds never collide, even on file systems that ignore case.
    """
    if _SAFE.match(volume_id):
        return volume_id
    readable = re.sub(r"[^a-z0-9]+", "-", volume_id.lower())[:40].strip("-")
    return f"_{readable}-{_digest(volume_id, 20)}"


def _digest(text: str, digest_bytes: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=digest_bytes).hexdigest()
