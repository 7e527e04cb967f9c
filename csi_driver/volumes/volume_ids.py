"""Names from outside: the id of a dynamic volume, and file names for ids of any characters."""

from __future__ import annotations

import hashlib
import re

from csi_driver.model.errors import InvalidParameter, MissingParameter

MAX_ID_BYTES = 128
"""What CSI promises every orchestrator for an id or a name. Longer ids from outside are taken too, up to
``MAX_FOREIGN_ID_BYTES``: a static volume's id is whatever somebody wrote into a PersistentVolume."""

MAX_FOREIGN_ID_BYTES = 4096

_DYNAMIC = re.compile(r"hayloft-[a-z0-9.-]*-[0-9a-f]{16}\Z")
_INLINE = re.compile(r"csi-[0-9a-f]{64}\Z")
_SAFE = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}\Z")
_READABLE_LENGTH = 80


def dynamic_volume_id(name: str) -> str:
    """The id of the volume that CreateVolume makes for a name: the same one each time, in a form that is safe as a
    file name, label-like and readable, at most 128 bytes. Raises MissingParameter, InvalidParameter."""
    check_id("name", name)
    readable = re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_READABLE_LENGTH].strip("-.")
    return f"hayloft-{readable}-{_digest(name, 8)}"


def is_dynamic_volume_id(volume_id: str) -> bool:
    """Whether it has the form that ``dynamic_volume_id`` gives."""
    return _DYNAMIC.match(volume_id) is not None


def is_inline_volume_id(volume_id: str) -> bool:
    """Whether kubelet made it, for an inline volume: then it belongs to one pod on one node and never comes back."""
    return _INLINE.match(volume_id) is not None


def check_id(field: str, text: str) -> None:
    """Raises MissingParameter, InvalidParameter for what cannot be an id: empty, too long, control characters."""
    if not text:
        raise MissingParameter(field)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FOREIGN_ID_BYTES:
        raise InvalidParameter(field, f"{text[:64]}…", f"at most {MAX_FOREIGN_ID_BYTES} bytes")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InvalidParameter(field, text, "text without control characters")


def file_name(volume_id: str) -> str:
    """A file name (or part of a key) for an id: one part, never hidden, at most 100 characters, one per id.

    Ids that are safe as they are keep their text. All others get a digest and a leading underscore, which no safe id
    has, so the two kinds never meet, also on file systems that ignore case.
    """
    if _SAFE.match(volume_id):
        return volume_id
    readable = re.sub(r"[^a-z0-9]+", "-", volume_id.lower())[:40].strip("-")
    return f"_{readable}-{_digest(volume_id, 20)}"


def _digest(text: str, digest_bytes: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=digest_bytes).hexdigest()
