"""Which credentials were allowed by the store to read an object, as an extended attribute of its object file.

So a proof of access lives as long as the bytes that it is about: it survives a restart, moves with the rename of a
complete file, is shared by all mounts, and is gone with the eviction. An OPEN that needs it reads it by the descriptor
that it has anyway.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from csi_driver.cache.disk import Disk
from csi_driver.model.errors import CacheError

NAME = "trusted.hayloft"
"""``trusted``: no process without CAP_SYS_ADMIN sees it, also in a pod to which a materialised view links the file. The
name is short so that three proofs fit into an inode of ext4, without a block of their own."""

MOST_PROOFS = 12
"""The newest ones of a file. A credential that was dropped asks the store again."""

_ENTRY = struct.Struct("<16sI")


class AccessProof(NamedTuple):
    """The store let a credential read an object version at this time, in seconds since 1970."""

    credential: bytes
    at_s: int


def read_proof(disk: Disk, file: int | str, credential: bytes) -> int:
    """When the store let the credential read the object, in seconds since 1970; 0: never. By descriptor or path."""
    packed = _packed(disk, file)
    # Not ``packed.find``: the bytes of one entry may look like the start of another.
    for at in range(0, len(packed), _ENTRY.size):
        if packed.startswith(credential, at):
            return int(_ENTRY.unpack_from(packed, at)[1])
    return 0


def write_proof(disk: Disk, descriptor: int, proof: AccessProof, *, new_file: bool = False) -> None:
    """Records a proof, the newest first. Two threads that record different credentials at the same time may lose one:
    that credential asks again. A file system that has no room, or no such attributes, records nothing."""
    others = b"" if new_file else _without(_packed(disk, descriptor), proof.credential)
    try:
        disk.set_attribute("object.prove", descriptor, NAME, _ENTRY.pack(*proof) + others)
    except CacheError:
        return


def _packed(disk: Disk, file: int | str) -> bytes:
    try:
        packed = disk.get_attribute("object.proof", file, NAME)
    except CacheError:
        return b""
    return packed if len(packed) % _ENTRY.size == 0 else b""


def _without(packed: bytes, credential: bytes) -> bytes:
    entries = [packed[at : at + _ENTRY.size] for at in range(0, len(packed), _ENTRY.size)]
    return b"".join([entry for entry in entries if not entry.startswith(credential)][: MOST_PROOFS - 1])
