"""Changes an existing volume: parameters that may change, a new listing, and its size. A mounted volume keeps what it
was mounted with; the next mount on a node takes what is recorded by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from csi_driver.model.errors import CapacityOutOfRange, InvalidParameter, RegistryUnavailable, VolumeNotFound
from csi_driver.model.tenant import Tenant
from csi_driver.settings import PolicySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.parameter_text import size_text
from csi_driver.volumes.parameters import VolumeParameters, parse_changes
from csi_driver.volumes.records import VolumeRecord
from csi_driver.volumes.registry import Registry

REFRESH = "refresh"
"""A mutable parameter that is none of a volume: with each new text the dataset is listed again."""

_LONGEST_REFRESH = 128
_ATTEMPTS = 5
"""Each failure means that another call has changed the record."""


def split_refresh(mutable: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The parameters to be changed, in canonical form, and the text of ``refresh``. Raises InvalidParameter,
    UnknownParameter."""
    refresh = mutable.get(REFRESH, "").strip()
    if len(refresh) > _LONGEST_REFRESH or not refresh.isprintable():
        allowed = f"at most {_LONGEST_REFRESH} printable characters, such as a date"
        raise InvalidParameter(REFRESH, f"{refresh[:40]}…", allowed)
    return parse_changes({name: text for name, text in mutable.items() if name != REFRESH}), refresh


class VolumeChanges:
    """All methods block, and may be called from any thread; all raise VolumeNotFound and RegistryUnavailable."""

    def __init__(self, registry: Registry, snapshots: SnapshotService, policy: PolicySettings) -> None:
        self._registry, self._snapshots, self._policy = registry, snapshots, policy

    def modify(self, volume_id: str, mutable: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        """Ensures that the volume has these values; other parameters stay. A new ``refresh`` lists the dataset, which
        may take minutes. Raises InvalidParameter, UnknownParameter, and as ``SnapshotService.take`` and ``admit``."""
        changes, refresh = split_refresh(mutable)
        record = self._get(volume_id)
        if refresh and refresh != record.refreshed:
            self._refresh(record, changes, refresh, secrets)
        elif changes:
            self._replace(volume_id, lambda old: _modified(old, changes))

    def expand(self, volume_id: str, required_bytes: int, limit_bytes: int) -> VolumeRecord:
        """Ensures that the volume has at least this size. Where it reserves a part of the cache it reserves so much
        from then on, as much as the dataset has at the most. Raises CapacityOutOfRange."""
        record = self._get(volume_id)
        if limit_bytes and record.capacity_bytes > limit_bytes:
            raise CapacityOutOfRange(
                f"capacity_range: the volume has {record.capacity_bytes} bytes, more than limit_bytes ({limit_bytes}); "
                "a volume does not become smaller"
            )
        if required_bytes <= max(record.required_bytes, record.expanded_bytes):
            return record
        return self._replace(volume_id, lambda old: _expanded(old, required_bytes))

    def _refresh(
        self, record: VolumeRecord, changes: Mapping[str, str], refresh: str, secrets: Mapping[str, str]
    ) -> None:
        if record.source_kind:
            allowed = "left out for a volume that was made of a snapshot or of another volume"
            raise InvalidParameter(REFRESH, refresh, allowed, "Such a volume shows the same bytes for ever")
        tenant = Tenant(record.namespace)
        parameters = VolumeParameters.parse(record.parameters, self._policy, tenant)
        admit(parameters, secrets, self._policy, tenant)
        listed = self._snapshots.take(parameters, secrets, tenant, f"{record.volume_id} {refresh}")
        for _ in range(_ATTEMPTS):
            old = self._get(record.volume_id)
            facts = {
                "snapshot_id": listed.snapshot_id,
                "total_bytes": listed.total_bytes,
                "file_count": listed.file_count,
                "created": listed.created,
                "refreshed": refresh,
            }
            if self._snapshots.replace(old, _modified(old, changes).model_copy(update=facts)):
                return
        raise _busy(record.volume_id)

    def _replace(self, volume_id: str, change: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord:
        for _ in range(_ATTEMPTS):
            old = self._get(volume_id)
            new = change(old)
            if new == old or self._registry.replace(old, new):
                return new
        raise _busy(volume_id)

    def _get(self, volume_id: str) -> VolumeRecord:
        record = self._registry.get(volume_id)
        if record is None:
            raise VolumeNotFound(f"{volume_id}: no such volume in the registry")
        return record


def _modified(record: VolumeRecord, changes: Mapping[str, str]) -> VolumeRecord:
    return record.model_copy(update={"modified": {**record.modified, **changes}})


def _reserves(record: VolumeRecord) -> int:
    """Bytes of the cache that a new mount of the volume reserves."""
    return record.in_effect(record.parsed()).cache_reservation_bytes


def _expanded(record: VolumeRecord, required_bytes: int) -> VolumeRecord:
    """A volume that reserves nothing goes on so: its claim has asked for a size, as any claim has to."""
    expanded = record.model_copy(update={"expanded_bytes": required_bytes})
    reserved_bytes = _reserves(record)
    enlarged_bytes = max(reserved_bytes, min(required_bytes, record.total_bytes))
    return _modified(expanded, {"cacheReservation": size_text(enlarged_bytes)}) if reserved_bytes else expanded


def _busy(volume_id: str) -> RegistryUnavailable:
    return RegistryUnavailable(f"the record of volume {volume_id!r} keeps changing; retry")
