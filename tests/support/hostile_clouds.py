"""``HostileS3`` as Google Cloud Storage and as Azure Blob Storage, with the same script of faults."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.hostile_s3 import Fault, HostileS3, Request, S3Handler, Status

_MODIFIED = "Fri, 02 Jan 2026 03:04:05 GMT"


class GoogleHandler(S3Handler):
    """The JSON API. The description of an object counts as HEAD."""

    def _parse(self) -> Request:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path.partition("/o/")[2])
        headers = {name.lower(): value for name, value in self.headers.items()}
        if "ifGenerationMatch" in query:
            headers["if-match"] = f'"{query["ifGenerationMatch"]}"'
        kind = ("GET" if query.get("alt") == "media" else "HEAD") if key else "LIST"
        return Request(self.command, kind, key, query, headers)

    def _names_bucket(self) -> bool:
        return urlsplit(self.path).path.startswith(f"/storage/v1/b/{self.hostile.bucket}/o")

    def _further_headers(self, key: str, content: bytes) -> dict[str, str]:
        return {"x-goog-generation": self.hostile.version(key, content), "ETag": '"another-in-this-api"'}

    def _list(self, request: Request, fault: Fault | None) -> None:
        after = unquote(request.query.get("pageToken", request.query.get("startOffset", "")))
        rows, more = self.hostile.page(request.query.get("prefix", ""), after)
        items = [
            {"name": key, "size": str(size), "generation": version, "updated": "2026-01-02T03:04:05.678Z"}
            for key, size, version in rows
        ]
        page = {"items": items} | ({"nextPageToken": quote(rows[-1][0], safe="")} if more else {})
        self._body(200, json.dumps(page).encode(), {"Content-Type": "application/json"}, fault)

    def _error(self, fault: Status, more_headers: Mapping[str, str] | None = None) -> None:
        described = {"error": {"code": fault.status, "errors": [{"reason": fault.code, "message": fault.message}]}}
        headers = dict(more_headers or {})
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        self._answer(fault.status, json.dumps(described).encode() if fault.xml else b"", headers)

    def _object(self, request: Request, fault: Fault | None) -> None:
        content = self.hostile.content(request.key)
        if request.kind == "HEAD" and content is not None:
            version = self.hostile.version(request.key, content)
            if request.headers.get("if-match") not in (None, f'"{version}"'):
                return self._error(Status(412, "conditionNotMet"))
            described = {"name": request.key, "size": str(len(content)), "generation": version}
            hashes = self.hostile.object_headers.get(request.key, {}).get("x-goog-hash", "")
            pairs = dict(part.partition("=")[::2] for part in hashes.split(",") if part)
            described |= {"updated": "2026-01-02T03:04:05.678Z", "crc32c": pairs.get("crc32c", "")}
            described |= {"md5Hash": pairs.get("md5", "")}
            return self._answer(200, json.dumps(described).encode())
        encoding = self.hostile.object_headers.get(request.key, {}).get("Content-Encoding")
        if content is not None and encoding == "gzip" and "gzip" not in request.headers.get("accept-encoding", ""):
            return self._transcoded(gzip.decompress(content), self.hostile.version(request.key, content))
        return super()._object(request, fault)

    def _transcoded(self, content: bytes, version: str) -> None:
        """What the service sends to clients that accept no gzip: all of it, decompressed and without a length."""
        self.send_response(200)
        self.send_header("x-goog-generation", version)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))


class HostileGoogle(HostileS3):
    """A bucket of Google Cloud Storage. Versions are generations."""

    handler = GoogleHandler

    def version(self, key: str, content: bytes) -> str:
        return str(int(super().version(key, content)[:14], 16))


class AzureHandler(S3Handler):
    """Blob storage, without an account in the path."""

    def _parse(self) -> Request:
        request = super()._parse()
        if request.query.get("comp") == "list":
            return Request(request.method, "LIST", "", request.query, request.headers)
        return request

    def _list(self, request: Request, fault: Fault | None) -> None:
        rows, more = self.hostile.page(request.query.get("prefix", ""), unquote(request.query.get("marker", "")))
        blobs = "".join(
            f"<Blob>{_name(key)}<Properties><Last-Modified>{_MODIFIED}</Last-Modified><Etag>{version}</Etag>"
            f"<Content-Length>{size}</Content-Length><BlobType>BlockBlob</BlobType></Properties>"
            f"{self._metadata(key)}</Blob>"
            for key, size, version in rows
        )
        token = f"<NextMarker>{quote(rows[-1][0], safe='')}</NextMarker>" if more else "<NextMarker/>"
        xml = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{blobs}</Blobs>{token}'
        self._body(200, f"{xml}</EnumerationResults>".encode("utf-8", "surrogatepass"), {}, fault)

    def _metadata(self, key: str) -> str:
        """Metadata that tests put down as headers."""
        headers = self.hostile.object_headers.get(key, {}).items()
        pairs = [(name[10:], value) for name, value in headers if name.startswith("x-ms-meta-")]
        inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in pairs)
        return f"<Metadata>{inner}</Metadata>" if inner else "<Metadata/>"


def _name(key: str) -> str:
    """As the service writes it from version 2021-02-12 on: names that XML cannot hold are escaped."""
    if any((character < " " and character not in "\t\n\r") or character in "\ufffe\uffff" for character in key):
        return f'<Name Encoded="true">{quote(key)}</Name>'
    return f"<Name>{escape(key)}</Name>".replace("\r", "&#xD;")


class HostileAzure(HostileS3):
    """A container of Azure Blob Storage."""

    handler = AzureHandler
