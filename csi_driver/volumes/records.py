"""What the registry records of volumes, snapshots and groups of snapshots, as frozen values.

An earlier version of Hayloft reads the record of a volume without the fields that it does not know. A snapshot has the
form of a volume and lies beside the volumes: so an earlier version, which knows no snapshots, still counts it before it
removes the manifest that the snapshot names.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from csi_driver.model.errors import RegistryUnavailable, RequestError
from csi_driver.volumes.dataset_lister import PinMode
from csi_driver.volumes.earlier_versions import joined_attributes, split_attributes
from csi_driver.volumes.parameters import VolumeParameters

RECORD_FORMAT: Literal[1] = 1

_SPLIT = frozenset({"parameters", "modified"})
_SINCE = "_since"
"""Stored beside these fields, under their names with this ending: what the version before would refuse, and the record
with it."""


class Record(BaseModel):
    """Unknown fields, of later minor versions, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = RECORD_FORMAT
    kind: str

    @property
    def id(self) -> str:
        """The id by which CSI names it."""
        raise NotImplementedError


class ManifestReference(Record):
    """What all records that name a manifest have in common, also those of later versions."""

    kind: str = "volume"
    volume_id: str
    snapshot_id: str
    """Of the manifest."""

    @property
    def id(self) -> str:
        return self.volume_id


class _OfDataset(Record):
    """What a volume and a snapshot have in common."""

    volume_id: str
    name: str
    """The name that the call was given; for a static or inline volume its id."""
    dynamic: bool
    """Made by CreateVolume: its snapshot never changes. Otherwise a new mount may list the dataset again."""
    parameters: dict[str, str]
    """The canonical context of ``VolumeParameters``."""
    snapshot_id: str
    """Of the manifest."""
    required_bytes: int = Field(default=0, ge=0)
    """The size that the claim requested; used only to compare requests."""
    total_bytes: int = Field(ge=0)
    file_count: int = Field(ge=0)
    created: AwareDatetime
    """When the dataset was listed."""
    namespace: str = ""
    """Of the claim that a dynamic volume was made for; empty: not known."""

    @model_validator(mode="before")
    @classmethod
    def _join_attributes(cls, stored: Any) -> Any:
        if not isinstance(stored, dict):
            return stored
        joined = {
            name: joined_attributes(before, since)
            for name in _SPLIT
            if isinstance(before := stored.get(name), dict) and isinstance(since := stored.get(name + _SINCE), dict)
        }
        return {**stored, **joined}

    @model_serializer(mode="wrap")
    def _split_attributes(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stored: dict[str, Any] = serialise(self)
        for name in _SPLIT & stored.keys():
            stored[name], since = split_attributes(stored[name])
            if since:
                stored[name + _SINCE] = since
        return stored

    @property
    def id(self) -> str:
        return self.volume_id

    def parsed(self) -> VolumeParameters:
        """Parses ``parameters`` at every call: call it once and pass the value on. Not part of decoding, so that a
        record that this version cannot parse can still be deleted. Raises RegistryUnavailable."""
        try:
            return VolumeParameters.parse(self.parameters)
        except RequestError as error:
            raise RegistryUnavailable(f"the record of {self.volume_id!r} has unreadable parameters: {error}") from error


class VolumeRecord(_OfDataset):
    """One volume."""

    kind: Literal["volume"] = "volume"
    source_kind: Literal["", "snapshot", "volume"] = ""
    """Of what the volume was made; empty: by listing its dataset."""
    source_id: str = ""
    modified: dict[str, str] = {}
    """Parameters that were changed after the volume was made; those of ``MUTABLE_PARAMETERS`` only."""
    refreshed: str = ""
    """The value of ``refresh`` for which the dataset was listed last."""
    expanded_bytes: int = Field(default=0, ge=0)
    """The size that the claim was enlarged to."""

    @property
    def capacity_bytes(self) -> int:
        """What is reported as the volume's size."""
        return max(self.total_bytes, self.required_bytes, self.expanded_bytes)

    def serves(self, request: VolumeRecord) -> bool:
        """Whether this stored record satisfies a request for another one: all but the snapshot is equal. Different
        texts of the parameters are parsed before they are compared: an older version may have had other defaults."""
        if _identity(self) != _identity(request):
            return False
        return self.parameters == request.parameters or self.parsed() == request.parsed()

    def in_effect(self, requested: VolumeParameters) -> VolumeParameters:
        """The parameters that a new mount gets for those that its PersistentVolume names, which cannot be edited."""
        return requested.modified_by(self.modified) if self.modified else requested


def _identity(record: VolumeRecord) -> tuple[object, ...]:
    source = record.source_kind, record.source_id
    return record.volume_id, record.name, record.dynamic, record.required_bytes, source


class SnapshotRecord(_OfDataset):
    """One snapshot of a volume. ``volume_id`` is its own id."""

    kind: Literal["snapshot"] = "snapshot"
    source_volume_id: str
    mode: PinMode = "auto"
    pinned_count: int = Field(default=0, ge=0)
    """Files that are pinned by a version of the store."""
    why: str = ""
    """Why the others are not."""
    taken: AwareDatetime
    group_id: str = ""
    """Of the group that it belongs to; empty: it stands alone."""

    def serves(self, request: SnapshotRecord) -> bool:
        """Whether this stored record satisfies a request for another one."""
        fields = ("name", "source_volume_id", "mode", "group_id")
        return all(getattr(self, field) == getattr(request, field) for field in fields)


class GroupRecord(Record):
    """Snapshots of several volumes, made by one call."""

    kind: Literal["group"] = "group"
    group_id: str
    name: str
    source_volume_ids: tuple[str, ...]
    """Sorted."""
    snapshot_ids: tuple[str, ...]
    mode: PinMode = "auto"
    taken: AwareDatetime

    @property
    def id(self) -> str:
        return self.group_id
