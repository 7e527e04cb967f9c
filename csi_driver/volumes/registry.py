"""The registry: what every node must agree on about volumes. Records are small JSON documents, manifests are files.

Layout, in a directory or under a prefix of an object store::

    volumes/<name made from the volume id>.json
    manifests/<snapshot id>.arrow

Records change only by conditional puts, so of two writers one always learns that the other was first. Secrets never
get here: a record holds parameters that ``VolumeParameters`` has read, and that knows no secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from csi_driver.model.errors import (
    ManifestInvalid,
    ObjectNotFound,
    RegistryUnavailable,
    RequestError,
    StoreError,
    VolumeConflict,
)
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id, file_name

RECORD_FORMAT: Literal[1] = 1
_VOLUMES = "volumes/"
_MANIFESTS = "manifests/"
_SNAPSHOT_ID = re.compile(r"[A-Za-z0-9_-]{8,128}\Z")

T = TypeVar("T")


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


class Blob(Protocol):
    """A small object with the version that ``put_if_match`` asks for."""

    @property
    def data(self) -> bytes: ...
    @property
    def version(self) -> str: ...


class Blobs(Protocol):
    """Where the registry keeps its bytes; see ``objects/blobs.py``. Raises StoreError or OSError."""

    def get(self, key: str) -> Blob | None:
        """None: there is none."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """False: there is one already."""

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        """False: it is of another version, or gone."""

    def delete(self, key: str) -> None:
        """Ensures that there is none."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with ``prefix``."""

    def put_file(self, key: str, path: Path) -> None:
        """Stores a file whole or not at all."""

    def fetch_to_file(self, key: str, path: Path) -> None:
        """Makes a blob a local file. Raises ObjectNotFound."""


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


class BlobRegistry:
    """A registry on a store of blobs."""

    def __init__(self, blobs: Blobs, location: str) -> None:
        self._blobs = blobs
        self._location = location

    def get(self, volume_id: str) -> VolumeRecord | None:
        stored = self._stored(volume_id)
        return None if stored is None else stored[0]

    def create(self, record: VolumeRecord) -> VolumeRecord:
        check_id("volume id", record.volume_id)
        key, body = _record_key(record.volume_id), _encode(record)
        # Twice, in case the record that is in the way goes away between the two steps.
        for _ in range(2):
            if self._call(key, lambda: self._blobs.put_if_absent(key, body)):
                return record
            stored = self.get(record.volume_id)
            if stored is not None:
                return _standing(stored, record)
        raise RegistryUnavailable(f"{self._where(key)} comes and goes; is the volume being deleted? Try again")

    def replace(self, old: VolumeRecord, new: VolumeRecord) -> bool:
        stored = self._stored(old.volume_id)
        if stored is None or stored[0] != old:
            return False
        key, body, version = _record_key(old.volume_id), _encode(new), stored[1]
        return self._call(key, lambda: self._blobs.put_if_match(key, body, version))

    def delete(self, volume_id: str) -> None:
        check_id("volume id", volume_id)
        key = _record_key(volume_id)
        self._call(key, lambda: self._blobs.delete(key))

    def records(self) -> Iterator[VolumeRecord]:
        for key in self._call(_VOLUMES, lambda: list(self._blobs.list(_VOLUMES))):
            if key.endswith(".json"):
                blob = self._call(key, lambda key=key: self._blobs.get(key))  # type: ignore[misc]
                if blob is not None:
                    yield self._decode(key, blob.data)

    def put_manifest(self, snapshot_id: str, path: Path) -> None:
        key = _manifest_key(snapshot_id)
        if not self.has_manifest(snapshot_id):
            self._call(key, lambda: self._blobs.put_file(key, path))

    def has_manifest(self, snapshot_id: str) -> bool:
        key = _manifest_key(snapshot_id)
        return key in self._call(key, lambda: list(self._blobs.list(key)))

    def fetch_manifest(self, snapshot_id: str, target: Path) -> None:
        key = _manifest_key(snapshot_id)
        try:
            self._call(key, lambda: self._blobs.fetch_to_file(key, target))
        except ObjectNotFound as error:
            raise ManifestInvalid(f"{self._where(key)} is missing") from error

    def delete_manifest(self, snapshot_id: str) -> None:
        key = _manifest_key(snapshot_id)
        self._call(key, lambda: self._blobs.delete(key))

    def _stored(self, volume_id: str) -> tuple[VolumeRecord, str] | None:
        """The record with its version."""
        check_id("volume id", volume_id)
        key = _record_key(volume_id)
        blob = self._call(key, lambda: self._blobs.get(key))
        if blob is None:
            return None
        record = self._decode(key, blob.data)
        if record.volume_id != volume_id:
            raise RegistryUnavailable(f"{self._where(key)} is of volume {record.volume_id!r}, not of {volume_id!r}")
        return record, blob.version

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

    def _call(self, key: str, ask: Callable[[], T]) -> T:
        """Names the registry in what the store of blobs raises."""
        try:
            return ask()
        except ObjectNotFound:
            raise
        except StoreError as error:
            raise RegistryUnavailable(f"{self._where(key)}: {error}") from error
        except OSError as error:
            raise RegistryUnavailable(f"{self._where(key)}: {error.strerror or error}") from error

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
