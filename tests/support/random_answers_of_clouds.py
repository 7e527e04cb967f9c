"""How Google and Azure write the answers of ``random_answers.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote

from tests.support.random_answers import Answer, Asked, S3Dialect, etag

_UPDATED = "2026-01-02T03:04:05.678Z"


class GoogleDialect(S3Dialect):
    """The JSON API. Versions are generations."""

    def listing(self, asked: Asked) -> tuple[str, str] | None:
        if "/o/" in asked.path:
            return None
        return asked.query.get("prefix", ""), asked.query.get("pageToken", "")

    def page(self, rows: Sequence[tuple[str, bytes]], next_token: str | None) -> Answer:
        page = {"items": [_described(key, content) for key, content in rows]}
        return _json(page | ({"nextPageToken": next_token} if next_token else {}))

    def key(self, asked: Asked) -> str:
        return unquote(asked.path.partition("/o/")[2])

    def object_headers(self, content: bytes) -> dict[str, str]:
        return {**super().object_headers(content), "x-goog-generation": etag(content)}

    def description(self, asked: Asked, key: str, content: bytes) -> Answer | None:
        return None if asked.query.get("alt") == "media" else _json(_described(key, content))

    def error(self, status: int, code: str) -> Answer:
        return Answer(status, {}, json.dumps({"error": {"errors": [{"reason": code}]}}).encode())


def _described(key: str, content: bytes) -> dict[str, str]:
    return {"name": key, "size": str(len(content)), "generation": etag(content), "updated": _UPDATED}


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


class AzureDialect(S3Dialect):
    """Blob storage, without an account in the path."""

    def listing(self, asked: Asked) -> tuple[str, str] | None:
        if asked.query.get("comp") != "list":
            return None
        return asked.query.get("prefix", ""), asked.query.get("marker", "")

    def page(self, rows: Sequence[tuple[str, bytes]], next_token: str | None) -> Answer:
        blobs = "".join(
            f"<Blob><Name>{key}</Name><Properties><Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified>"
            f"<Etag>{etag(content)}</Etag><Content-Length>{len(content)}</Content-Length></Properties></Blob>"
            for key, content in rows
        )
        inner = f"<Blobs>{blobs}</Blobs><NextMarker>{next_token or ''}</NextMarker>"
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{inner}</EnumerationResults>'
        return Answer(200, {"Content-Type": "application/xml"}, text.encode())
