"""Web servers, with and without WebDAV: they show a directory, and the tests write its files."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from csi_driver.model.errors import BucketNotFound, EmptyDataset, ObjectNotFound
from tests.stores.odd_keys import NOT_IN_A_DIRECTORY
from tests.stores.store_server import BUCKET, CertificateFiles, StoreCannot, StoreServer, Volume

_LINK = re.compile(r"""[hH]ref[^>="]*(?:="|>)([^"<]+)""")
"""In a page, and in an answer to PROPFIND."""
PASSWORD = "conformance-password-1"  # for the checks


class WebServer(StoreServer):
    """Shows ``root``. Files are replaced by renaming, so that what is read is one version or the other."""

    user = "conformance"
    password = ""
    """Where it is not empty, the server asks for it."""
    sends_encoding = False
    """It compresses what it sends, and says of a file that ends in .gz that its Content-Encoding is gzip."""
    mounts_one_object = True
    cannot_hold = NOT_IN_A_DIRECTORY
    listing_page = 0
    missing_bucket = (BucketNotFound, ObjectNotFound, EmptyDataset)

    @property
    def listing_method(self) -> str:
        return "PROPFIND" if self.protocol == "WebDAV" else "GET"

    def __init__(self, directory: Path, certificate: CertificateFiles | None = None) -> None:
        super().__init__(directory, certificate)
        self.root = directory / "files"
        (self.root / BUCKET).mkdir(parents=True, exist_ok=True)

    def put(self, key: str, data: bytes, *, encoding: str = "") -> None:
        if encoding and not self.sends_encoding:
            raise StoreCannot("has no Content-Encoding of an object")
        path = self.root / BUCKET / key
        if os.path.normpath(key) != key or path.is_dir():
            raise StoreCannot(f"{key!r} is no path of a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreCannot(f"{key!r}: {error}") from error
        part = self.directory / f"part-{os.urandom(8).hex()}"
        part.write_bytes(data)
        part.rename(path)

    def delete(self, key: str) -> None:
        (self.root / BUCKET / key).unlink()

    def keys(self, prefix: str) -> set[str]:
        """What its pages, or its answers to PROPFIND, name of the files that are there."""
        found: set[str] = set()
        for directory, _, names in os.walk(self.root / BUCKET / prefix):
            below = os.path.relpath(directory, self.root / BUCKET)
            listed = self._names_in(below) if names else set()
            found.update(f"{below}/{name}" for name in names if name in listed)
        return found

    def _names_in(self, directory: str) -> set[str]:
        with self._request(f"{directory}/", {"Depth": "1"}, self.listing_method) as answer:
            text = answer.read().decode()
        links = (html.unescape(link).rstrip("/") for link in _LINK.findall(text))
        return {unquote(link.rpartition("/")[2]) for link in links}

    def volume(self, prefix: str, bucket: str = BUCKET, endpoint: str = "") -> Volume:
        secrets = {"username": self.user, "password": self.password} if self.password else {}
        return Volume({"url": f"{endpoint or self.endpoint}/{bucket}/{prefix}"}, secrets)

    def with_wrong_secret(self, volume: Volume) -> Volume:
        if not self.password:
            raise StoreCannot("asks for no password")
        return volume.changed(secrets={**volume.secrets, "password": "another-password-2"})

    def with_wrong_identity(self, volume: Volume) -> Volume:
        if not self.password:
            raise StoreCannot("asks for no password")
        return volume.changed(secrets={**volume.secrets, "username": "another-user"})

    def without_credentials(self, volume: Volume) -> Volume:
        if not self.password:
            raise StoreCannot("asks for no password")
        return volume.changed(secrets={}, anonymous="true")

    def anonymous(self, volume: Volume) -> Volume:
        if self.password:
            raise StoreCannot("asks everybody for a password")
        return volume.changed(anonymous="true")

    def _request(self, path: str, headers: dict[str, str], method: str = "GET") -> Any:
        password = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        more = {"Authorization": f"Basic {password}"} if self.password else {}
        url = f"{self.endpoint}/{BUCKET}/{quote(path)}"
        request = urllib.request.Request(url, headers={**headers, **more}, method=method)  # noqa: S310 - of the tests
        return urllib.request.urlopen(request, timeout=10)  # noqa: S310


def password_file(directory: Path, user: str) -> Path:
    """As htpasswd makes it, for PASSWORD."""
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode(), usedforsecurity=False).digest()).decode()
    path = directory / "passwords"
    path.write_text(f"{user}:{{SHA}}{digest}\n")
    return path
