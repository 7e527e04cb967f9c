"""The files by which the next daemon adopts the mounts of this one, by mount id.

    <state>/mounts/<mount id>.json    volume, mount point, attributes, snapshot: what the first version recorded
    <state>/mounts/<mount id>.more    what was added since: the first version takes no record with an unknown field
    <state>/mounts/<mount id>.opens   the open table, see filesystem/open_table.py
    <state>/mounts/<mount id>.arrow   the manifest that the mount shows
    <state>/mounts/<mount id>.warmup  the requested warmup, see warmup_records.py

Secrets are not stored: the keeper holds them in memory, with the descriptor of the mount.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from csi_driver.cache.disk import state_errors
from csi_driver.model.tenant import Tenant
from csi_driver.volumes.earlier_versions import joined_attributes, split_attributes

_FORMAT = 1

_OF_FIRST_VERSION = ("mount_id", "volume_id", "mount_point", "attributes", "snapshot_id", "region")
_ONLY_OF_FIRST_VERSION = "access_domain"
"""A field that the first version has in each record, and no later one: it depended on the credential."""

_SINCE = "attributes_since"
"""In the file of what was added: attributes that the version before would refuse, and the record with them."""

_CONTENT = "records of mounts"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount of this node; JSON on disk."""

    mount_id: str
    volume_id: str
    mount_point: str
    attributes: dict[str, str]
    snapshot_id: str
    region: str | None = None
    credential: str = ""
    """The name of the credential, in hexadecimal digits; it is keyed and reveals nothing. Both are as determined
    at the mount: the services that they come from may be unreachable at the adoption."""
    namespace: str = ""
    inline: bool = False
    domain: str = ""
    """The access domain, once other credentials were brought than those of the mount; empty: as computed of them."""
    with_secret: bool = False
    """The volume was mounted with a Secret."""
    device: str = ""
    """Identifies the mount in the mount table, with all its bind mounts. Empty: not mounted yet, or lost."""
    lost: bool = False
    """The mount died, and its volume was not unmounted: the next publication mounts it again."""
    reserved_bytes: int = 0
    """By ``DataPlane.reserve``, if that is more than the attributes ask for."""
    mount_group: int = 0
    """As of ``MountRequest``."""
    pinned: bool = False
    """By ``NodeOperations.set_pinned``: all bytes of the volume are reserved."""

    @property
    def tenant(self) -> Tenant:
        return Tenant(self.namespace, self.inline)

    @staticmethod
    def new_id() -> str:
        """A random mount id."""
        return f"m-{secrets.token_hex(8)}"


_FIELDS = frozenset(field.name for field in dataclass_fields(MountRecord))
"""Others are of a later version, and not needed."""


def _read(path: Path) -> dict[str, Any]:
    """The fields in a file. Raises ValueError, KeyError, OSError, AttributeError, TypeError."""
    found: dict[str, Any] = json.loads(path.read_text())
    if found.pop("format") != _FORMAT:
        raise ValueError("another format")
    if found.pop("checksum") != _checksum(found):
        raise ValueError("damaged")
    return found


def _checksum(fields: Mapping[str, object]) -> int:
    """Detects a flipped bit, which could unmount another path or show another dataset."""
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


class MountRecords:
    """The records below one state directory. No two threads may use one mount id at a time."""

    def __init__(self, state_directory: Path) -> None:
        self._directory = state_directory / "mounts"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def opens_path(self, mount_id: str) -> Path:
        """The open table of the mount."""
        return self._directory / f"{mount_id}.opens"

    def manifest_path(self, mount_id: str) -> Path:
        """The manifest of the mount."""
        return self._directory / f"{mount_id}.arrow"

    def warmup_path(self, mount_id: str) -> Path:
        """The WarmupRecord of the mount."""
        return self._directory / f"{mount_id}.warmup"

    def store_manifest(self, mount_id: str, source: Path) -> Path:
        """Stores a manifest for the mount alone, as a hard link where possible: a later daemon can adopt the mount even
        if the volume was deleted from the registry. Raises CacheDiskFailed, DescriptorsExhausted."""
        target = self.manifest_path(mount_id)
        with state_errors(target, _CONTENT):
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        return target

    def save(self, record: MountRecord) -> None:
        """Atomic, by a rename. Not synced: a mount does not survive a crash of the machine either. Raises
        CacheDiskFailed, DescriptorsExhausted."""
        fields = asdict(record)
        first = {name: fields.pop(name) for name in _OF_FIRST_VERSION}
        first["attributes"], fields[_SINCE] = split_attributes(record.attributes)
        # In this order: without the second file there is no record.
        self._save(self._directory / f"{record.mount_id}.more", fields)
        self._save(self._directory / f"{record.mount_id}.json", first)

    def _save(self, path: Path, fields: Mapping[str, object]) -> None:
        temporary = path.with_suffix(".new")
        with state_errors(path, _CONTENT):
            temporary.write_text(json.dumps({"format": _FORMAT, **fields, "checksum": _checksum(fields)}))
            temporary.rename(path)

    def load(self) -> Iterator[MountRecord]:
        """All records that can be read. Removes the files of those that are damaged or in another format."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                fields = _read(path)
                if fields.pop(_ONLY_OF_FIRST_VERSION, None) is None and fields.keys() <= set(_OF_FIRST_VERSION):
                    # Never without: the record of a tenant's volume would be one of an administrator's.
                    fields |= _read(path.with_suffix(".more"))
                    fields["attributes"] = joined_attributes(fields["attributes"], fields.get(_SINCE, {}))
                record = MountRecord(**{name: value for name, value in fields.items() if name in _FIELDS})
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                self.remove(path.stem)
                continue
            yield record

    def remove(self, mount_id: str) -> None:
        """Removes all files of a mount. Success if there are none."""
        for suffix in ("json", "more", "new", "opens", "arrow", "warmup"):
            with suppress(FileNotFoundError):
                (self._directory / f"{mount_id}.{suffix}").unlink()

    def remove_unknown(self, known: set[str]) -> None:
        """Removes the files of mounts that were never recorded, because the daemon died while mounting."""
        for path in self._directory.iterdir():
            if path.name.split(".")[0] not in known:
                path.unlink(missing_ok=True)
