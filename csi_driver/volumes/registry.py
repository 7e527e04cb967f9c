"""The registry: the state of volumes that all nodes share. Records are small JSON documents, manifests are files.

Layout, in a directory or under a prefix of an object store::

    volumes/<name made from the volume id>.json
    manifests/<snapshot id>.arrow

Records change only by conditional puts, so of two concurrent writers one always fails. Records contain no secrets:
``VolumeParameters`` accepts none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import (
    ManifestInvalid,
    RegistryUnavailable,
    RequestError,
    VolumeConflict,
)
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.settings import RegistrySettings
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id, file_name

RECORD_FORMAT: Literal[1] = 1
_VOLUMES = "volumes/"
_MANIFESTS = "manifests/"
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,127}\Z")


class VolumeRecord(BaseModel):
    """The record of one volume. Unknown fields, of later minor versions, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = RECORD_FORMAT
    volume_id: str
    name: str
    """The name that CreateVolume was given; for a static or inline volume its id."""
    dynamic: bool
    """Made by CreateVolume: its snapshot never changes. Otherwise a new mount may list the dataset again."""
    parameters: dict[str, str]
    """The canonical context of ``VolumeParameters``."""
    snapshot_id: str
    required_bytes: int = Field(default=0, ge=0)
    """The size that the claim requested; used only to compare requests."""
    total_bytes: int = Field(ge=0)
    file_count: int = Field(ge=0)
    created: AwareDatetime
    """When the snapshot was taken."""
    namespace: str = ""
    """Of the claim that a dynamic volume was made for; empty: not known."""

    def parsed(self) -> VolumeParameters:
        """Parses ``parameters`` at every call: call it once and pass the value on. Not part of decoding, so that a
        record that this version cannot parse can still be deleted. Raises RegistryUnavailable."""
        try:
            return VolumeParameters.parse(self.parameters)
        except RequestError as error:
            raise RegistryUnavailable(
                f"the record of volume {self.volume_id!r} has unreadable parameters: {error}"
            ) from error

    def serves(self, request: VolumeRecord) -> bool:
        """Whether this stored record satisfies a request for another one: all but the snapshot is equal. Different
        texts of the parameters are parsed before they are compared: an older version may have had other defaults."""
        stored = (self.volume_id, self.name, self.dynamic, self.required_bytes)
        requested = (request.volume_id, request.name, request.dynamic, request.required_bytes)
        if stored != requested:
            return False
        return self.parameters == request.parameters or self.parsed() == request.parsed()


class Registry(Protocol):
    """All methods block and may be called from any thread. All raise RegistryUnavailable."""

    def check(self) -> None:
        """Raises InvalidParameter for a store that cannot hold a registry."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """None if there is no record."""

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Writes the record unless one exists. Returns the stored record: an earlier one if that ``serves`` the
        request. Raises VolumeConflict if it does not."""

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        """Replaces ``old`` by ``new``. False: the stored record is no longer ``old``."""

    def delete(self, volume_id: str) -> None:
        """Ensures that there is no record."""

    def records(self) -> Iterator[VolumeRecord]:
        """All records, in any order."""

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        """Ensures that the manifest is stored. The caller owns the file and must not write to it afterwards: the
        registry may have a hard link to it."""

    def has_manifest(self, snapshot_id: str) -> bool: ...

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        """Makes the manifest a local file, which must not exist yet: a hard link where the registry is a directory of
        the same file system, so that it is stored and mapped once. Raises ManifestInvalid if it is not stored."""

    def delete_manifest(self, snapshot_id: str) -> None:
        """Ensures that the manifest is not stored. Local files of nodes that have fetched it stay."""


def open_registry(settings: RegistrySettings) -> Registry:
    """The registry in a directory, which is created, or below a URL, with the ambient identity of this process.

    Sends no request to an object store yet. Raises UnsupportedUrl, InvalidParameter, CredentialsRejected,
    RegistryUnavailable.
    """
    blobs = open_blobs(settings.location, StoreOptions(endpoint=settings.endpoint), Credentials())
    return BlobRegistry(blobs, settings.location, _directory_of(settings.location))


def _directory_of(location: str) -> Path | None:
    if "://" not in location:
        return Path(location)
    url = DatasetUrl.parse(location)
    return Path("/" + url.prefix) if url.scheme == "file" else None


class BlobRegistry:
    """A registry in a BlobStore."""

    def __init__(self, blobs: BlobStore, location: str, directory: Path | None = None) -> None:
        """``location`` names the registry in messages. ``directory``: where the blobs are files, or None."""
        self._blobs = blobs
        self._location = location
        self._directory = directory

    def check(self) -> None:
        self._blobs.check()

    def get(self, volume_id: str) -> VolumeRecord | None:
        stored = self._stored(volume_id)
        return None if stored is None else stored[0]

    def create(self, record: VolumeRecord) -> VolumeRecord:
        check_id("volume id", record.volume_id)
        key, body = _record_key(record.volume_id), _encode(record)
        for _ in range(2):  # twice: the existing record may be deleted between the put and the get
            if self._blobs.put_if_absent(key, body) is not None:
                return record
            stored = self.get(record.volume_id)
            if stored is None:
                continue
            if not stored.serves(record):
                raise VolumeConflict(
                    f"volume {record.volume_id!r} (name {record.name!r}) exists with other parameters or another size; "
                    "use another name, or delete the volume first"
                )
            return stored
        raise RegistryUnavailable(
            f"{self._where(key)} keeps appearing and vanishing; is the volume being deleted? Retry"
        )

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        stored = self._stored(old.volume_id)
        if stored is None or stored[0] != old:
            return False
        return self._blobs.put_if_match(_record_key(old.volume_id), _encode(new), stored[1]) is not None

    def delete(self, volume_id: str) -> None:
        check_id("volume id", volume_id)
        self._blobs.delete(_record_key(volume_id))

    def records(self) -> Iterator[VolumeRecord]:
        for key in self._blobs.list(_VOLUMES):
            blob = self._blobs.get(key) if key.endswith(".json") else None
            if blob is not None:
                yield self._decode(key, blob[0])

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        if not self.has_manifest(snapshot_id):
            self._blobs.put_file(_manifest_key(snapshot_id), path)

    def has_manifest(self, snapshot_id: str) -> bool:
        key = _manifest_key(snapshot_id)
        return key in self._blobs.list(key)

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        key = _manifest_key(snapshot_id)
        if self._directory is not None:
            with contextlib.suppress(OSError):  # another file system, or one without hard links: fallback path below
                os.link(self._directory / key, target)
                return
        if not self._blobs.fetch_to_file(key, target):
            raise ManifestInvalid(f"{self._where(key)} is missing")

    def delete_manifest(self, snapshot_id: str) -> None:
        self._blobs.delete(_manifest_key(snapshot_id))

    def _stored(self, volume_id: str) -> tuple[VolumeRecord, str] | None:
        """The record with its version tag, for a conditional put."""
        check_id("volume id", volume_id)
        key = _record_key(volume_id)
        blob = self._blobs.get(key)
        if blob is None:
            return None
        content, tag = blob
        record = self._decode(key, content)
        if record.volume_id != volume_id:
            raise RegistryUnavailable(f"{self._where(key)} is of volume {record.volume_id!r}, not of {volume_id!r}")
        return record, tag

    def _decode(self, key: str, data: bytes) -> VolumeRecord:
        try:
            document = json.loads(data)
            written = document.get("format") if isinstance(document, dict) else None
            if written != RECORD_FORMAT:
                raise RegistryUnavailable(
                    f"{self._where(key)} has format {written!r}, and this version of Hayloft reads {RECORD_FORMAT}"
                )
            return VolumeRecord.model_validate(document)
        except ValidationError as error:
            invalid = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
            raise RegistryUnavailable(
                f"{self._where(key)} is not a record of a volume (see {invalid}); {_REMEDY}"
            ) from None
        except ValueError:
            raise RegistryUnavailable(f"{self._where(key)} is torn or foreign: not JSON; {_REMEDY}") from None

    def _where(self, key: str) -> str:
        return f"registry {self._location}: {key}"


_REMEDY = "restore it, or delete it together with its volume"


def _record_key(volume_id: str) -> str:
    return f"{_VOLUMES}{file_name(volume_id)}.json"


def _manifest_key(snapshot_id: str) -> str:
    """Raises ManifestInvalid for an id that is unsafe in a path: a foreign record may contain any text."""
    if not _SNAPSHOT_ID.match(snapshot_id):
        raise ManifestInvalid(f"{snapshot_id!r} is not the id of a snapshot")
    return f"{_MANIFESTS}{snapshot_id}.arrow"


def _encode(record: VolumeRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()
