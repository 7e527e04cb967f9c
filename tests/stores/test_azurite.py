"""Azurite, Microsoft's emulator of Azure Blob Storage."""

from __future__ import annotations

import base64
import hashlib
import hmac
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from csi_driver.model.errors import AccessDenied, BucketNotFound
from tests.stores.conformance import StoreConformance
from tests.stores.rest_requests import RestError, rest
from tests.stores.store_server import BUCKET, HOST, INSTALLED, StoreCannot, StoreServer, Volume

ACCOUNT = "conformance"
KEY = base64.b64encode(b"conformance account key of 32 by").decode()


class Azurite(StoreServer):
    name = "azurite"
    title = "Azurite"
    protocol = "Azure Blob"
    listing_page = 5000
    terminates_tls = True
    cannot = {"test_wrong_region": "has no regions"}
    cannot_hold = {"back\\slash": "makes it a slash", "bell\x07key": "lists it in a page that is not XML"}
    own_answers = {
        "test_wrong_secret": (AccessDenied, "AuthorizationFailure"),
        "test_wrong_identity": (BucketNotFound, "ResourceNotFound"),
    }

    @classmethod
    def program(cls) -> Path:
        return INSTALLED / "azurite" / "node_modules" / ".bin" / "azurite-blob"

    def command(self) -> list[str]:
        where = ["--blobHost", HOST, "--blobPort", str(self.port), "--location", str(self.directory / "files")]
        if self.certificate is not None:
            where += ["--cert", str(self.certificate.certificate), "--key", str(self.certificate.key)]
        return [str(self.program()), *where, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}

    def prepare(self) -> None:
        self._request("PUT", BUCKET, {"restype": "container"})

    def put(self, key: str, data: bytes, *, encoding: str = "") -> None:
        more = {"x-ms-blob-content-encoding": encoding} if encoding else {}
        headers = {"x-ms-blob-type": "BlockBlob", "content-type": "application/octet-stream", **more}
        try:
            self._request("PUT", f"{BUCKET}/{quote(key, safe='/')}", {}, data, headers)
        except RestError as error:
            raise StoreCannot(f"put of {key!r}: {error}") from error

    def put_parts(self, key: str, parts: list[bytes]) -> None:
        names = [base64.b64encode(f"{number:08}".encode()).decode() for number in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            self._request("PUT", f"{BUCKET}/{quote(key)}", {"comp": "block", "blockid": name}, part)
        blocks = "".join(f"<Latest>{name}</Latest>" for name in names)
        self._request(
            "PUT", f"{BUCKET}/{quote(key)}", {"comp": "blocklist"}, f"<BlockList>{blocks}</BlockList>".encode()
        )

    def delete(self, key: str) -> None:
        self._request("DELETE", f"{BUCKET}/{quote(key)}", {})

    def keys(self, prefix: str) -> set[str]:
        answer = self._request("GET", BUCKET, {"restype": "container", "comp": "list", "prefix": prefix})
        page = ElementTree.fromstring(answer.removeprefix(b"\xef\xbb\xbf"))  # noqa: S314 - a server of the tests
        names = page.iterfind(".//Blob/Name")
        return {unquote(name.text or "") if name.get("Encoded") == "true" else name.text or "" for name in names}

    def volume(self, prefix: str, bucket: str = BUCKET, endpoint: str = "") -> Volume:
        attributes = {"url": f"az://{bucket}/{prefix}", "endpoint": f"{endpoint or self.endpoint}/{ACCOUNT}"}
        return Volume(attributes, {"account_name": ACCOUNT, "account_key": KEY})

    def with_wrong_secret(self, volume: Volume) -> Volume:
        wrong = base64.b64encode(b"another account key of 32 bytes.").decode()
        return volume.changed(secrets={**volume.secrets, "account_key": wrong})

    def with_wrong_identity(self, volume: Volume) -> Volume:
        endpoint = volume.attributes["endpoint"].replace(ACCOUNT, "wrongaccount")
        return volume.changed(secrets={**volume.secrets, "account_name": "wrongaccount"}, endpoint=endpoint)

    def without_credentials(self, volume: Volume) -> Volume:
        return volume.changed(secrets={"account_name": ACCOUNT}, anonymous="true")

    def anonymous(self, volume: Volume) -> Volume:
        public = {"x-ms-blob-public-access": "container"}
        self._request("PUT", BUCKET, {"restype": "container", "comp": "acl"}, headers=public)
        return volume.changed(secrets={"account_name": ACCOUNT}, anonymous="true")

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """Signed by the account's key."""
        sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03", **(headers or {})}
        target = f"/{ACCOUNT}/{path}"
        own = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent) if name.startswith("x-ms-"))
        resource = f"/{ACCOUNT}{target}" + "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        length = str(len(body)) if body else ""
        text = f"{method}\n\n\n{length}\n\n{sent.get('content-type', '')}\n\n\n\n\n\n\n{own}{resource}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
        sent["authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        parameters = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        return rest(self, method, f"{target}?{parameters}" if query else target, body, sent)


class TestAzurite(StoreConformance):
    server_class = Azurite
