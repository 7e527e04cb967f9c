"""The key of the cluster, which all nodes share, and what is derived from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.tier.slice_names import KEY_BYTES

_MOST_BYTES = 4096


def read_key(flag: str, path: Path) -> bytes:
    """Raises InvalidParameter, which names the flag and never the content."""
    try:
        with path.open("rb") as file:
            key = file.read(_MOST_BYTES).strip()
    except OSError as error:
        raise InvalidParameter(flag, str(path), f"a file that can be read ({error.strerror})") from None
    if len(key) < KEY_BYTES:
        remedy = f"it has {len(key)}; make one with: head -c 32 /dev/urandom | base64"
        raise InvalidParameter(flag, str(path), f"a file with at least {KEY_BYTES} bytes", remedy)
    return key


def link_secret(key: bytes) -> str:
    """What paths are signed with where there is no TLS: hexadecimal. It does not reveal the key."""
    return hashlib.blake2b(b"links", key=hashlib.blake2b(key).digest(), digest_size=20).hexdigest()
