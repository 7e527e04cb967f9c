"""Records of one kind in a BlobStore: small JSON documents that change only by conditional puts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Generic, TypeVar

from pydantic import ValidationError

from csi_driver.model.errors import RegistryUnavailable
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.volumes.records import RECORD_FORMAT, ManifestReference, Record
from csi_driver.volumes.volume_ids import check_id, file_name

R = TypeVar("R", bound=Record)

_REMEDY = "restore it, or delete it together with its volume"
_ENDING = ".json"
_OF_ANOTHER_KIND = "="
"""In the name of a record that lies among those of volumes and is of none. No name of a volume's record has it."""


class RecordFiles(Generic[R]):
    """All methods block, may be called from any thread and process, and raise RegistryUnavailable."""

    def __init__(self, blobs: BlobStore, location: str, prefix: str, kind: type[R]) -> None:
        """``location`` names the registry in messages."""
        self._blobs, self._location, self._prefix, self._kind = blobs, location, prefix, kind
        self._name = kind.model_fields["kind"].default
        self._mixed = kind is ManifestReference

    def get(self, record_id: str) -> R | None:
        """None if there is no record."""
        stored = self._stored(record_id)
        return None if stored is None else stored[0]

    def put(self, record: R) -> R:
        """Writes the record unless one of its id exists. Returns the stored record."""
        check_id(f"{self._name} id", record.id)
        key = self._key(record.id)
        for _ in range(2):  # twice: the existing record may be deleted between the put and the get
            if self._blobs.put_if_absent(key, _encoded(record)) is not None:
                return record
            stored = self.get(record.id)
            if stored is not None:
                return stored
        raise RegistryUnavailable(
            f"{self._where(key)} keeps appearing and vanishing; is the {self._name} being deleted? Retry"
        )

    def replace(self, old: R, new: R) -> bool:
        """Replaces ``old`` by ``new``. False: the stored record is no longer ``old``."""
        stored = self._stored(old.id)
        if stored is None or stored[0] != old:
            return False
        return self._blobs.put_if_match(self._key(old.id), _encoded(new), stored[1]) is not None

    def delete(self, record_id: str) -> None:
        """Ensures that there is no record."""
        check_id(f"{self._name} id", record_id)
        self._blobs.delete(self._key(record_id))

    def names(self) -> list[str]:
        """One for each record, sorted: for ``named``."""
        found = [key.removeprefix(self._prefix) for key in self._blobs.list(self._prefix) if key.endswith(_ENDING)]
        return [name.removesuffix(_ENDING) for name in found if self._mixed or _OF_ANOTHER_KIND not in name]

    def named(self, name: str) -> R | None:
        """The record of that name; None if it was deleted meanwhile."""
        key = f"{self._prefix}{name}{_ENDING}"
        blob = self._blobs.get(key)
        return None if blob is None else self._decode(key, blob[0])

    def all(self) -> Iterator[R]:
        """All records, in any order."""
        for name in self.names():
            record = self.named(name)
            if record is not None:
                yield record

    def _stored(self, record_id: str) -> tuple[R, str] | None:
        """The record with its version tag, for a conditional put."""
        check_id(f"{self._name} id", record_id)
        key = self._key(record_id)
        blob = self._blobs.get(key)
        if blob is None:
            return None
        content, tag = blob
        record = self._decode(key, content)
        if record.id != record_id:
            raise RegistryUnavailable(f"{self._where(key)} is of {self._name} {record.id!r}, not of {record_id!r}")
        return record, tag

    def _decode(self, key: str, data: bytes) -> R:
        try:
            document = json.loads(data)
            written = document.get("format") if isinstance(document, dict) else None
            if written != RECORD_FORMAT:
                raise RegistryUnavailable(
                    f"{self._where(key)} has format {written!r}, and this version of Hayloft reads {RECORD_FORMAT}"
                )
            return self._kind.model_validate(document)
        except ValidationError as error:
            invalid = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
            raise RegistryUnavailable(
                f"{self._where(key)} is not a record of a {self._name} (see {invalid}); {_REMEDY}"
            ) from None
        except ValueError:
            raise RegistryUnavailable(f"{self._where(key)} is torn or foreign: not JSON; {_REMEDY}") from None

    def _key(self, record_id: str) -> str:
        return f"{self._prefix}{file_name(record_id)}{_ENDING}"

    def _where(self, key: str) -> str:
        return f"registry {self._location}: {key}"


def _encoded(record: Record) -> bytes:
    return record.model_dump_json(indent=1).encode()
