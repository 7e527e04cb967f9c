"""Events at a VolumeSnapshot or VolumeGroupSnapshot that was made and cannot promise what its user may expect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from csi_driver.kubernetes.events import Event, EventRecorder, ObjectReference
from csi_driver.volumes.records import SnapshotRecord

_PARAMETERS = (
    ("VolumeSnapshot", "snapshot.storage.k8s.io/v1", "csi.storage.k8s.io/volumesnapshot"),
    ("VolumeGroupSnapshot", "groupsnapshot.storage.k8s.io/v1", "csi.storage.k8s.io/volumegroupsnapshot"),
)
"""Kind, version, and the beginning of the parameters that external-snapshotter adds with --extra-create-metadata."""

_UID_IN_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
"""The end of the name that external-snapshotter gives a snapshot by default: the uid of its object."""

_REASON = "ObjectsNotPinned"


class SnapshotEvents:
    """May be used from any thread."""

    def __init__(self, recorder: EventRecorder | None = None) -> None:
        """Without a recorder nothing is sent."""
        self._recorder = recorder

    def made(self, name: str, parameters: Mapping[str, str], records: Iterable[SnapshotRecord]) -> None:
        """Reports objects that are not pinned by a version, of a snapshot or of those of a group."""
        about = snapshot_of(name, parameters)
        if self._recorder is None or about is None:
            return
        # A set: the volumes of a group may be of one bucket. The texts have no numbers that could make them differ.
        for why in sorted({record.why for record in records if record.why and record.mode != "off"}):
            text = (
                f"Objects of the snapshot are not pinned by a version: {why}. It shows the same bytes as long as they "
                "are not changed; reads of one that was overwritten or deleted fail, and never show other bytes. "
                "Enable versioning of the bucket and write them again; versions: required in the class refuses such "
                "snapshots"
            )
            self._recorder.record(Event(about, _REASON, text, is_warning=True))


def snapshot_of(name: str, parameters: Mapping[str, str]) -> ObjectReference | None:
    """The object that a snapshot of this name is made for. None: the caller names none."""
    for kind, version, beginning in _PARAMETERS:
        namespace, of_name = parameters.get(f"{beginning}/namespace", ""), parameters.get(f"{beginning}/name", "")
        if namespace and of_name:
            uid = _UID_IN_NAME.search(name)
            return ObjectReference(kind, namespace, of_name, uid[0] if uid else "", version)
    return None
