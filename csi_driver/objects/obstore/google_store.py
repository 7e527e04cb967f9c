"""Google Cloud Storage: bytes through obstore, checksums through a request that obstore signs and urllib3 carries."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import obstore
import urllib3

from csi_driver.model.errors import ObjectChanged
from csi_driver.objects.checksums import StoredChecksum, from_google_hash, md5_worthwhile_bytes
from csi_driver.objects.error_mapping import from_obstore, from_status, from_urllib3
from csi_driver.objects.obstore.obstore_store import ObstoreStore
from csi_driver.objects.store_location import StoreLocation

if TYPE_CHECKING:
    from obstore.store import GCSStore
    from obstore.store import ObjectStore as Obstore

_SIGNATURE_VALID_FOR = timedelta(minutes=5)


class GoogleStore(ObstoreStore):
    """An ObstoreStore with checksums: ``x-goog-hash``, a header that obstore does not expose."""

    def __init__(self, store: Obstore, location: StoreLocation, http: urllib3.PoolManager, *, anonymous: bool) -> None:
        super().__init__(store, location)
        self._http, self._anonymous = http, anonymous
        self.md5_up_to_bytes = md5_worthwhile_bytes(location.endpoint)

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """Signing needs a service account: its key, or the permission to sign through Google's service."""
        self._require_tidy(key)
        try:
            response = self._http.request("HEAD", self._url(key), redirect=False, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise from_urllib3(error, self._location, key) from None
        if response.status != 200:
            raise from_status(self._location, key, response.status)
        if if_match is not None and response.headers.get("ETag", "").strip('"') != if_match:
            raise ObjectChanged(f"{self._location.name(key)} is not the version that was listed; make a new snapshot")
        own_key = "x-goog-encryption-kms-key-name" in response.headers
        return from_google_hash(response.headers.get("x-goog-hash"), etag_may_be_md5=not own_key)

    def _url(self, key: str) -> str:
        if self._anonymous:
            return f"{self._location.endpoint}/{quote(self._location.bucket)}/{quote(key)}"
        try:
            return obstore.sign(cast("GCSStore", self._store), "HEAD", key, _SIGNATURE_VALID_FOR)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise from_obstore(error, self._location, key) from None

    def close(self) -> None:
        self._http.clear()
