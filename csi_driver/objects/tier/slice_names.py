"""How bytes are called on a replica: by names that none can guess who has not the key of the cluster.

A name holds the access domain, the credential, the store, the object and its version. A server sends what it has to
those who name it, without a request to the bucket: so another credential has other names, and finds only what the
bucket has sent to itself.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

KEY_BYTES = 32
"""Of the key of the cluster, at least."""
LINK_VALID_S = 300
"""A link lets a request begin for so long. Clocks of nodes differ by seconds."""

OBJECTS, SLICES = "/v1/object/", "/v1/slice/"
"""Objects that are cached as a whole, and those that are cached slice by slice."""


class SliceNames:
    """Names of the objects of one store, as one credential reads them."""

    def __init__(self, key: bytes, access_domain: str, credential: bytes, endpoint: str, bucket: str) -> None:
        """``key``: of the cluster, the same on all nodes. ``credential``: its name under a key of the cluster."""
        scope = _lengths(access_domain, credential.hex(), endpoint, bucket)
        self._common = hashlib.blake2b(scope, digest_size=20, key=hashlib.blake2b(key).digest())

    def name(self, key: str, version_id: str | None, etag: str) -> str:
        """40 hexadecimal digits, of one version of an object."""
        digest = self._common.copy()
        digest.update(_lengths(key, version_id or "", etag))
        return digest.hexdigest()


class LinkSigner(NamedTuple):
    """Signs paths as nginx's ``secure_link`` checks them."""

    secret: str

    def signed(self, path: str, now_s: float) -> str:
        """The path with a query, by which the server lets it pass until ``LINK_VALID_S`` after the minute of
        ``now_s``."""
        expires = (int(now_s) // 60 + 1) * 60 + LINK_VALID_S
        digest = hashlib.md5(f"{expires}{path} {self.secret}".encode(), usedforsecurity=False).digest()
        return f"{path}?md5={base64.urlsafe_b64encode(digest).decode().rstrip('=')}&expires={expires}"


def _lengths(*parts: str) -> bytes:
    """Length-prefixed, so that two lists of parts never give the same bytes."""
    return "".join(f"{len(part)}:{part}," for part in parts).encode("utf-8", "surrogateescape")
