"""What becomes an event at a claim, a pod or a snapshot, and what does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from csi_driver.catalog.manifest_notes import IMPORTED
from csi_driver.csi.claim_events import ClaimEvents, claim_of
from csi_driver.csi.pod_events import PodEvents, pod_of
from csi_driver.csi.snapshot_events import SnapshotEvents
from csi_driver.kubernetes.events import ObjectReference
from csi_driver.model.conditions import OBJECTS_GONE
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.rpc import progress
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import DaemonReport, MountRequest, VolumeReport, WarmupReport, WarmupState
from csi_driver.volumes.records import SnapshotRecord
from tests.support.data_planes import InMemoryDataPlane
from tests.support.fake_events import RecordedEvents

UID = "0a1b2c3d-0000-4000-8000-0123456789ab"
CLAIM = {"csi.storage.k8s.io/pvc/name": "images", "csi.storage.k8s.io/pvc/namespace": "team-a"}
POD = {
    "csi.storage.k8s.io/pod.name": "trainer-0",
    "csi.storage.k8s.io/pod.namespace": "team-a",
    "csi.storage.k8s.io/pod.uid": UID,
}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def recorded() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def create(name: str = f"pvc-{UID}", parameters: dict[str, str] = CLAIM) -> csi_pb2.CreateVolumeRequest:
    return csi_pb2.CreateVolumeRequest(name=name, parameters=parameters)


def test_a_claim_is_known_by_the_parameters_of_the_provisioner_and_its_uid_by_the_name_of_the_volume() -> None:
    assert claim_of(f"pvc-{UID}", CLAIM) == ObjectReference("PersistentVolumeClaim", "team-a", "images", UID)
    assert claim_of("mine", CLAIM) == ObjectReference("PersistentVolumeClaim", "team-a", "images", "")
    assert claim_of(f"pvc-{UID}", {}) is None
    assert pod_of(POD) == ObjectReference("Pod", "team-a", "trainer-0", UID)
    assert pod_of({}) is None


@pytest.mark.promise("S383")
def test_a_long_listing_is_reported_once_a_minute_with_what_it_found(recorded: RecordedEvents, clock: Clock) -> None:
    remarks = (("KeysLeftOut", "2 objects are not shown"), (IMPORTED, "the list is that of an inventory"))
    with ClaimEvents(recorded, clock).listing(create()):
        for second in range(0, 130, 10):
            clock.now_s = second
            progress.observer().listed(second * 1000)
        progress.observer().finished(130_000, 5 << 30, remarks)
    assert [event.reason for event in recorded.events if event.is_warning] == ["KeysLeftOut"]
    assert recorded.take() == [
        ("ListingDataset", "The dataset is being listed: 60000 objects so far, 1000 a second"),
        ("ListingDataset", "The dataset is being listed: 120000 objects so far, 1000 a second"),
        ("DatasetListed", "The dataset has 130000 files, 5.0 GiB"),
        ("KeysLeftOut", "2 objects are not shown"),
        (IMPORTED, "the list is that of an inventory"),
    ]


def test_a_listing_without_a_claim_or_without_a_cluster_is_not_reported(recorded: RecordedEvents) -> None:
    for events, request in ((ClaimEvents(recorded), create(parameters={})), (ClaimEvents(), create())):
        with events.listing(request):
            progress.observer().finished(1, 1, ())
    progress.observer().finished(1, 1, ())
    assert recorded.take() == []


# -- pods --


class Plane(InMemoryDataPlane):
    """Its volumes have the state that a test gives them."""

    abnormal = False
    cache_limit_bytes = 1 << 40

    def volume(self, volume_id: str) -> VolumeReport:
        return replace(super().volume(volume_id), conditions=(OBJECTS_GONE,) if self.abnormal else ())

    def report(self) -> DaemonReport:
        return replace(super().report(), cache_limit_bytes=self.cache_limit_bytes)


@pytest.fixture
def plane() -> Plane:
    plane = Plane()
    plane.mount(MountRequest("volume-1", "/staging", {}))
    return plane


@pytest.fixture
def events(plane: Plane, recorded: RecordedEvents, clock: Clock) -> PodEvents:
    events = PodEvents(plane, recorded, clock)
    events.published(publication())
    return events


def publication(target: str = "/target", **more: str) -> csi_pb2.NodePublishVolumeRequest:
    return csi_pb2.NodePublishVolumeRequest(volume_id="volume-1", target_path=target, volume_context={**POD, **more})


def polled(events: PodEvents, recorded: RecordedEvents, clock: Clock | None = None) -> list[str]:
    """The reasons of a poll; with the clock, a minute after the last one."""
    if clock is not None:
        clock.now_s += 60
    events.poll()
    return [reason for reason, _ in recorded.take() if reason != "VolumeNote"]


@pytest.mark.promise("S384")
def test_a_warmup_is_reported_while_it_runs_and_when_it_ends(
    events: PodEvents, plane: Plane, recorded: RecordedEvents, clock: Clock
) -> None:
    def warmup(state: WarmupState, done: int = 0) -> list[str]:
        plane.warmups["volume-1"] = WarmupReport("volume-1", state, total_files=10, done_files=done, message="why")
        return polled(events, recorded)

    assert warmup(WarmupState.RUNNING) == []
    clock.now_s += 59
    assert warmup(WarmupState.RUNNING, 1) == []
    clock.now_s += 1
    assert warmup(WarmupState.RUNNING, 2) == ["WarmupProgress"]
    assert warmup(WarmupState.COMPLETE, 10) == ["WarmupComplete"]
    assert warmup(WarmupState.COMPLETE, 10) == []
    assert warmup(WarmupState.FAILED) == ["WarmupFailed"]
    assert warmup(WarmupState.FULL) == ["CacheTooSmall"]
    assert warmup(WarmupState.CANCELLED) == ["WarmupCancelled"]


@pytest.mark.promise("S385")
def test_what_is_wrong_with_a_volume_is_said_once_at_each_pod_while_it_lasts(
    events: PodEvents, plane: Plane, recorded: RecordedEvents, clock: Clock
) -> None:
    assert polled(events, recorded, clock) == []
    plane.abnormal = True
    assert polled(events, recorded, clock) == ["ObjectsGone"]
    assert polled(events, recorded, clock) == []
    events.published(publication("/other target", **{"csi.storage.k8s.io/pod.name": "trainer-1"}))
    events.published(publication())  # kubelet repeats it
    assert polled(events, recorded, clock) == ["ObjectsGone"]
    plane.abnormal = False
    assert polled(events, recorded, clock) == []
    plane.abnormal = True
    assert polled(events, recorded, clock) == ["ObjectsGone", "ObjectsGone"]
    events.unpublished("/target")
    events.unpublished("/other target")
    plane.abnormal = False
    assert polled(events, recorded, clock) == []


@pytest.mark.promise("S385")
def test_a_dataset_larger_than_the_cache_of_the_node_is_reported(
    events: PodEvents, plane: Plane, recorded: RecordedEvents
) -> None:
    plane.cache_limit_bytes = 1 << 30
    events.poll()
    texts = [message for reason, message in recorded.take() if reason == "CacheTooSmall"]
    assert len(texts) == 1
    assert "2.8 GiB" in texts[0]
    assert "1.0 GiB" in texts[0]


@pytest.mark.promise("S387")
def test_a_daemon_that_is_away_is_asked_again_later(
    events: PodEvents, plane: Plane, recorded: RecordedEvents, clock: Clock
) -> None:
    plane.failure = DaemonUnavailable("away")
    assert polled(events, recorded, clock) == []
    plane.failure, plane.abnormal = None, True
    assert polled(events, recorded, clock) == ["ObjectsGone"]


def test_a_publication_without_a_pod_is_not_reported(plane: Plane, recorded: RecordedEvents) -> None:
    events = PodEvents(plane, recorded)
    events.published(csi_pb2.NodePublishVolumeRequest(volume_id="volume-1", target_path="/target"))
    plane.abnormal = True
    assert polled(events, recorded) == []


# -- snapshots --


MINIMAL = {
    "volume_id": f"snapshot-{UID}",
    "name": f"snapshot-{UID}",
    "dynamic": True,
    "parameters": {"url": "s3://bucket/train"},
    "snapshot_id": "0" * 64,
    "total_bytes": 1,
    "file_count": 1,
    "created": datetime(2026, 1, 1, tzinfo=UTC),
    "source_volume_id": "v",
    "taken": datetime(2026, 1, 1, tzinfo=UTC),
}


def snapshot_record(**fields: Any) -> SnapshotRecord:
    return SnapshotRecord(**{**MINIMAL, **fields})


@pytest.mark.promise("S501")
@pytest.mark.parametrize(
    ("kind", "beginning", "prefix"),
    [("VolumeSnapshot", "volumesnapshot", "snapshot"), ("VolumeGroupSnapshot", "volumegroupsnapshot", "groupsnapshot")],
)
def test_a_snapshot_or_a_group_says_once_why_objects_are_not_pinned(
    recorded: RecordedEvents, kind: str, beginning: str, prefix: str
) -> None:
    parameters = {
        f"csi.storage.k8s.io/{beginning}/name": "tonight",
        f"csi.storage.k8s.io/{beginning}/namespace": "team-a",
    }
    why = "the bucket kept no versions when they were written"
    events = SnapshotEvents(recorded)
    events.made(f"{prefix}-{UID}", parameters, [snapshot_record(why=why), snapshot_record(why=why)])
    (event,) = recorded.events
    assert (event.about.kind, event.about.namespace, event.about.name, event.about.uid) == (
        kind,
        "team-a",
        "tonight",
        UID,
    )
    assert event.body(time="t", host="h")["involvedObject"]["apiVersion"].endswith("snapshot.storage.k8s.io/v1")
    assert event.is_warning
    assert why in event.message
    assert "versioning" in event.message


@pytest.mark.promise("S501")
def test_a_snapshot_that_keeps_what_its_class_promises_says_nothing(recorded: RecordedEvents) -> None:
    parameters = {"csi.storage.k8s.io/volumesnapshot/name": "a", "csi.storage.k8s.io/volumesnapshot/namespace": "b"}
    events = SnapshotEvents(recorded)
    events.made("s", parameters, [snapshot_record(mode="required", pinned_count=1)])
    events.made("s", parameters, [snapshot_record(mode="off", why="the snapshot was made with versions: off")])
    events.made("s", {}, [snapshot_record(why="why")])
    assert recorded.events == []
