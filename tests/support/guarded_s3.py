"""A loopback S3 server that checks signatures, and lets each key read or not."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import quote

from tests.support.hostile_s3 import Fault, HostileS3, Request, Status

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>[^,]+), ?SignedHeaders=(?P<names>[^,]+), ?"
    r"Signature=(?P<signature>[0-9a-f]+)"
)


class GuardedS3(HostileS3):
    """``secrets`` by access key id; ``readers`` are the ids that may read now. All others get a 403, except that any
    request may list."""

    def __init__(self, objects: Mapping[str, bytes], secrets: Mapping[str, str]) -> None:
        super().__init__(objects)
        self.secrets = dict(secrets)
        self.readers = set(secrets)

    def log(self, request: Request) -> Fault | None:
        fault = super().log(request)
        if fault is not None or request.kind == "LIST":
            return fault
        found = _AUTHORIZATION.match(request.headers.get("authorization", ""))
        kinds = (request.kind,)
        if found is None or found["key"] not in self.secrets:
            return Status(403, "InvalidAccessKeyId", kinds=kinds)
        if not hmac.compare_digest(found["signature"], self._signature(request, found)):
            return Status(403, "SignatureDoesNotMatch", kinds=kinds)
        return None if found["key"] in self.readers else Status(403, "AccessDenied", kinds=kinds)

    def asked_by(self, access_key_id: str) -> list[Request]:
        """Requests for objects that this key has signed, or claims to have."""
        mark = f"Credential={access_key_id}/"
        return [request for request in self.seen("GET") if mark in request.headers.get("authorization", "")]

    def _signature(self, request: Request, found: re.Match[str]) -> str:
        names = found["names"].split(";")
        path = "/".join(part for part in (self.bucket, request.key) if part)
        query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in sorted(request.query.items()))
        headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in names)
        body = request.headers["x-amz-content-sha256"]
        canonical = "\n".join((request.method, quote(f"/{path}", safe="/-_.~"), query, headers, found["names"], body))
        scope = found["scope"]
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(("AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest))
        key = f"AWS4{self.secrets[found['key']]}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
