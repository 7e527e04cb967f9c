"""AWS Signature Version 4, for requests without a body.

botocore takes 0.3 ms for a signature, too long for small objects, of which there are thousands a second; and its import
0.2 s and 9 MB.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, NamedTuple

from csi_driver.objects.s3.identity import S3Keys

if TYPE_CHECKING:
    from hashlib import _Hash

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
"""``x-amz-content-sha256`` of a request without a body."""

_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
"""An HMAC is two hashes (RFC 2104). That of the signing key is begun once a second and copied for each request, which
takes half of the time of ``hmac.digest``."""


class _SigningKey(NamedTuple):
    """Derived from a secret for one day; deriving it takes four HMACs."""

    secret: str
    day: str
    key: bytes

    @classmethod
    def derive(cls, secret: str, day: str, region: str) -> _SigningKey:
        key = f"AWS4{secret}".encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return cls(secret, day, key)


class _Second(NamedTuple):
    """What the signatures of one second with the same keys have in common."""

    keys: S3Keys
    timestamp: str
    inner: _Hash
    outer: _Hash
    """The two hashes of an HMAC, which have got the signing key and, the inner one, the text up to the request."""
    credential: str

    @classmethod
    def begin(cls, keys: S3Keys, timestamp: str, scope: str, signing_key: bytes) -> _Second:
        padded = signing_key.ljust(_BLOCK_BYTES, b"\0")
        inner = hashlib.sha256(padded.translate(_INNER))
        inner.update(f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n".encode())
        outer = hashlib.sha256(padded.translate(_OUTER))
        return cls(keys, timestamp, inner, outer, f"AWS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope}")


class RequestSigner:
    """Caches the signing key of the day, and what the requests of a second have in common. Safe for any number of
    threads."""

    def __init__(self, region: str) -> None:
        self._region = region
        # Replaced as one value and never changed: a thread that sees the old one derives the key once more.
        self._signing_key: _SigningKey | None = None
        # The same. Of its hashes only copies are updated.
        self._second: _Second | None = None

    def authorization(
        self,
        keys: S3Keys,
        path: str,
        timestamp: str,
        headers: dict[str, str],
        *,
        method: str = "GET",
        query: str = "",
    ) -> str:
        """The Authorization header of a request without a body.

        ``path`` and ``query`` are percent-encoded, the query sorted by name; ``timestamp`` is that of ``x-amz-date``.
        All ``headers`` are signed; their names are in lower case and sorted.
        """
        second = self._second
        if second is None or second.timestamp != timestamp or second.keys is not keys:
            second = self._second = self._begin_second(keys, timestamp)
        names = ";".join(headers)
        lines = "".join([f"{name}:{value}\n" for name, value in headers.items()])
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{EMPTY_SHA256}".encode()
        inner, outer = second.inner.copy(), second.outer.copy()
        inner.update(hashlib.sha256(canonical).hexdigest().encode())
        outer.update(inner.digest())
        return f"{second.credential}, SignedHeaders={names}, Signature={outer.hexdigest()}"

    def _begin_second(self, keys: S3Keys, timestamp: str) -> _Second:
        day, signing = timestamp[:8], self._signing_key
        if signing is None or signing.day != day or signing.secret != keys.secret_access_key:
            signing = self._signing_key = _SigningKey.derive(keys.secret_access_key, day, self._region)
        return _Second.begin(keys, timestamp, f"{day}/{self._region}/s3/aws4_request", signing.key)
