"""The registry: what every node must agree on about volumes. Records are small JSON documents, manifests are files.

Layout, in a directory or under a prefix of an object store::

    volumes/<name made from the volume id>.json
    manifests/<snapshot id>.arrow

Records change only by conditional puts, so of two writers one always learns that the other was first. Secrets never
get here: a record holds parameters that ``VolumeParameters`` has read, and that knows no secret.
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
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.objects.blobs.object_blobs import open_blobs
from csi_driver.settings import RegistrySettings
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id, file_name

RECORD_FORMAT: Literal[1] = 1
_VOLUMES = "volumes/"
_MANIFESTS = "manifests/"
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,127}\Z")


class VolumeRecord(BaseModel):
    """What is known about one volume. Unknown fields of later minor versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = RECORD_FORMAT
    volume_id: str
    name: str
    """The name that CreateVolume was given; for a static or inline volume its id."""
    dynamic: bool
    """Made by CreateVolume: its snapshot never changes. Otherwise a new mount may take a fresh one."""
    parameters: dict[str, str]
    """The canonical context of ``VolumeParameters``."""
    snapshot_id: str
    required_bytes: int = Field(default=0, ge=0)
    """What the claim asked for: kept for comparison, it changes nothing."""
    total_bytes: int = Field(ge=0)
    file_count: int = Field(ge=0)
    created: AwareDatetime
    """When the snapshot was taken."""

    def parsed(self) -> VolumeParameters:
        """Raises RegistryUnavailable for parameters that this version cannot read."""
        try:
            return VolumeParameters.parse(self.parameters)
        except RequestError as error:
            raise RegistryUnavailable(
                f"the record of volume {self.volume_id!r} has unreadable parameters: {error}"
            ) from error

    def serves(self, other: VolumeRecord) -> bool:
        """Whether a request for ``other`` is answered by this record: the same wish, perhaps another snapshot."""
        mine = (self.volume_id, self.name, self.dynamic, self.required_bytes)
        theirs = (other.volume_id, other.name, other.dynamic, other.required_bytes)
        return mine == theirs and self.parsed() == other.parsed()


class Registry(Protocol):
    """All methods block and may be called from any thread. All raise RegistryUnavailable."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """The record, or None."""

    def create(self, record: VolumeRecord) -> VolumeRecord:
        """Records a volume once. Returns the record that stands, which is an earlier one if that serves the same
        wish. Raises VolumeConflict if it does not."""

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        """Puts ``new`` in the place of ``old``. False: the record is no longer ``old``."""

    def delete(self, volume_id: str) -> None:
        """Ensures that there is no record."""

    def records(self) -> Iterator[VolumeRecord]:
        """All records, in no promised order."""

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        """Ensures that the manifest is stored. The file stays the caller's, and must not be written to afterwards."""

    def has_manifest(self, snapshot_id: str) -> bool:
        """Whether it is stored."""

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        """Makes the manifest a local file, which must not exist yet: a link where the registry is a directory of the
        same file system, so that it is stored and mapped once. Raises ManifestInvalid if it is not stored."""

    def delete_manifest(self, snapshot_id: str) -> None:
        """Ensures that it is not stored. Nodes that have fetched it keep their file."""


def open_registry(settings: RegistrySettings) -> Registry:
    """The registry at a directory, which is made, or below a URL, with the ambient identity of this process.

    Asks nothing of an object store yet. Raises UnsupportedUrl, InvalidParameter, CredentialsRejected,
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
    """A registry on a store of blobs."""

    def __init__(self, blobs: BlobStore, location: str, directory: Path | None = None) -> None:
        """``location`` names the registry in messages. ``directory`` is where the blobs are files, if they are."""
        self._blobs = blobs
        self._location = location
        self._directory = directory

    def get(self, volume_id: str) -> VolumeRecord | None:
        stored = self._stored(volume_id)
        return None if stored is None else stored[0]

    def create(self, record: VolumeRecord) -> VolumeRecord:
        check_id("volume id", record.volume_id)
        key, body = _record_key(record.volume_id), _encode(record)
        # Twice, in case the record that is in the way goes away between the two steps.
        for _ in range(2):
            if self._blobs.put_if_absent(key, body) is not None:
                return record
            stored = self.get(record.volume_id)
            if stored is not None:
                return _standing(stored, record)
        raise RegistryUnavailable(f"{self._where(key)} comes and goes; is the volume being deleted? Try again")

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
            # Another file system, or one without links: then a copy.
            with contextlib.suppress(OSError):
                os.link(self._directory / key, target)
                return
        if not self._blobs.fetch_to_file(key, target):
            raise ManifestInvalid(f"{self._where(key)} is missing")

    def delete_manifest(self, snapshot_id: str) -> None:
        self._blobs.delete(_manifest_key(snapshot_id))

    def _stored(self, volume_id: str) -> tuple[VolumeRecord, str] | None:
        """The record with its tag."""
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
            wrong = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
            raise RegistryUnavailable(
                f"{self._where(key)} is not a record of a volume (see {wrong}); {_MEND}"
            ) from None
        except ValueError:
            raise RegistryUnavailable(f"{self._where(key)} is torn or foreign: not JSON; {_MEND}") from None

    def _where(self, key: str) -> str:
        return f"registry {self._location}: {key}"


_MEND = "restore it, or delete it together with its volume"


def _standing(stored: VolumeRecord, wish: VolumeRecord) -> VolumeRecord:
    if not stored.serves(wish):
        raise VolumeConflict(
            f"volume {wish.volume_id!r} (name {wish.name!r}) exists with other parameters or another size; "
            "use another name, or delete the volume first"
        )
    return stored


def _record_key(volume_id: str) -> str:
    return f"{_VOLUMES}{file_name(volume_id)}.json"


def _manifest_key(snapshot_id: str) -> str:
    """Raises ManifestInvalid: a snapshot id becomes part of a path, and a foreign record may hold any text."""
    if not _SNAPSHOT_ID.match(snapshot_id):
        raise ManifestInvalid(f"{snapshot_id!r} is not the id of a snapshot")
    return f"{_MANIFESTS}{snapshot_id}.arrow"


def _encode(record: VolumeRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()
