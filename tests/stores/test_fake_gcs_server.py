"""fake-gcs-server, which checks no credentials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tests.stores.conformance import StoreConformance
from tests.stores.odd_keys import NOT_IN_A_DIRECTORY
from tests.stores.range_listing import RangeListing
from tests.stores.rest_requests import RestError, rest
from tests.stores.store_server import BUCKET, HOST, INSTALLED, StoreCannot, StoreServer, Volume


class FakeGcsServer(StoreServer):
    """Over a directory, without credentials: those of a service account are exchanged at Google first."""

    name = "fake-gcs-server"
    title = "fake-gcs-server"
    protocol = "Google Cloud Storage"
    terminates_tls = True
    cannot_hold = NOT_IN_A_DIRECTORY
    cannot = {
        "test_multipart": "objects are uploaded in one request",
        "test_wrong_secret": "takes no credentials",
        "test_wrong_identity": "takes no credentials",
        "test_no_credentials": "takes no credentials",
        "test_wrong_region": "has no regions",
    }

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "bin" / "fake-gcs-server"

    def command(self) -> list[str]:
        files = ["-backend", "filesystem", "-filesystem-root", str(self.directory / "files")]
        # It finds objects by the Host header, so no proxy can stand before it.
        where = ["-host", HOST, "-port", str(self.port), "-public-host", f"{HOST}:{self.port}", "-scheme"]
        where += ["https" if self.certificate else "http"]
        if self.certificate is not None:
            pair = self.certificate
            where += ["-cert-location", str(pair.certificate), "-private-key-location", str(pair.key)]
        return [str(self.program()), *files, *where, "-log-level", "warn"]

    def prepare(self) -> None:
        self._request("POST", "/storage/v1/b?project=p", json.dumps({"name": BUCKET}).encode())

    def put(self, key: str, data: bytes, *, encoding: str = "") -> None:
        query = {"uploadType": "media", "name": key, **({"contentEncoding": encoding} if encoding else {})}
        try:
            self._request("POST", f"/upload/storage/v1/b/{BUCKET}/o?{urlencode(query)}", data)
        except RestError as error:
            raise StoreCannot(f"put of {key!r}: {error}") from error
        if encoding:
            found = json.loads(self._request("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}"))
            if found.get("contentEncoding") != encoding:
                raise StoreCannot("does not keep the Content-Encoding")

    def put_parts(self, key: str, parts: list[bytes]) -> None:
        raise StoreCannot("objects are uploaded in one request")

    def delete(self, key: str) -> None:
        self._request("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}")

    def keys(self, prefix: str) -> set[str]:
        answer: dict[str, Any] = json.loads(
            self._request("GET", f"/storage/v1/b/{BUCKET}/o?{urlencode({'prefix': prefix})}")
        )
        return {entry["name"] for entry in answer.get("items", ())}

    def volume(self, prefix: str, bucket: str = BUCKET, endpoint: str = "") -> Volume:
        url = {"url": f"gs://{bucket}/{prefix}", "endpoint": endpoint or self.endpoint}
        return Volume({**url, "anonymous": "true"})

    def anonymous(self, volume: Volume) -> Volume:
        return volume

    def _request(self, method: str, target: str, body: bytes = b"") -> bytes:
        kind = "application/json" if target.startswith("/storage") else "application/octet-stream"
        return rest(self, method, target, body, {"content-type": kind})


class TestFakeGcsServer(RangeListing, StoreConformance):
    server_class = FakeGcsServer
