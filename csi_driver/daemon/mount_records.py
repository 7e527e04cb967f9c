"""What a daemon leaves for the next one about each of its mounts: a small JSON record and the open table, by mount id.

    <state>/mounts/<mount id>.json    volume, mount point, attributes, snapshot
    <state>/mounts/<mount id>.opens   the open table, see filesystem/open_table.py
    <state>/mounts/<mount id>.arrow   the manifest the mount shows
    <state>/mounts/<mount id>.warmup  what was asked to be fetched, see warmup_notes.py

Secrets are not here: the keeper holds them in memory, beside the descriptor of the mount.
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
from pathlib import Path

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount of this node."""

    mount_id: str
    volume_id: str
    mount_point: str
    attributes: dict[str, str]
    snapshot_id: str
    access_domain: str = ""
    region: str | None = None
    """Both as found when it was mounted: where they come from may be out of reach when it is adopted."""

    @staticmethod
    def new_id() -> str:
        """A mount id that no earlier mount had."""
        return f"m-{secrets.token_hex(8)}"


def _checksum(fields: Mapping[str, object]) -> int:
    """A flipped bit must neither unmount another path nor show another dataset."""
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


class MountRecords:
    """The records below one state directory. Used by one thread for one mount id at a time."""

    def __init__(self, state_directory: Path) -> None:
        """Makes the directory, for root's eyes only."""
        self._directory = state_directory / "mounts"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def opens_path(self, mount_id: str) -> Path:
        """Where the open table of a mount is."""
        return self._directory / f"{mount_id}.opens"

    def manifest_path(self, mount_id: str) -> Path:
        """Where the manifest of a mount is."""
        return self._directory / f"{mount_id}.arrow"

    def warmup_path(self, mount_id: str) -> Path:
        """Where it is noted what of a mount is to be fetched."""
        return self._directory / f"{mount_id}.warmup"

    def keep_manifest(self, mount_id: str, source: Path) -> Path:
        """Gives the mount a manifest of its own, by a hard link where that can be, so that deleting the volume in the
        registry takes nothing from a mount that a later daemon has to adopt."""
        target = self.manifest_path(mount_id)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        return target

    def save(self, record: MountRecord) -> None:
        """Written whole or not at all. Not synced: a mount does not outlive the machine either."""
        path = self._directory / f"{record.mount_id}.json"
        temporary = path.with_suffix(".new")
        fields = asdict(record)
        temporary.write_text(json.dumps({"format": _FORMAT, **fields, "checksum": _checksum(fields)}))
        temporary.rename(path)

    def load(self) -> Iterator[MountRecord]:
        """All records that can be read; what is left of others is removed."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                fields = json.loads(path.read_text())
                if fields.pop("format") != _FORMAT:
                    raise ValueError("another format")
                checksum = fields.pop("checksum", None)
                if checksum is not None and checksum != _checksum(fields):
                    raise ValueError("damaged")
                record = MountRecord(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.remove(path.stem)
                continue
            yield record

    def remove(self, mount_id: str) -> None:
        """Forgets a mount. One that is not there is success."""
        for suffix in ("json", "new", "opens", "arrow", "warmup"):
            with suppress(FileNotFoundError):
                (self._directory / f"{mount_id}.{suffix}").unlink()

    def remove_strays(self, known: set[str]) -> None:
        """Removes files of mounts that were begun and never recorded."""
        for path in self._directory.iterdir():
            if path.name.split(".")[0] not in known:
                path.unlink(missing_ok=True)
