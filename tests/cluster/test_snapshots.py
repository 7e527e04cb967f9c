"""Snapshots, copies and changes of claims, as their users write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hayloft_lab.cluster.kubectl import Object
from tests.cluster.datasets import TRAIN, VERSIONED_BUCKET, make_versioned_bucket, some_files, upload
from tests.cluster.installation import (
    DRIVER,
    SECRET,
    Installation,
    claim,
    define_snapshots,
    of_claim,
    pod,
    start_reader,
)

FILES = some_files(40)

SNAPSHOTS = "volumesnapshots.snapshot.storage.k8s.io"


@pytest.fixture(scope="module")
def snapshots(hayloft: Installation) -> Iterator[Installation]:
    """With snapshots, as docs/snapshots.md says how to have them, and StorageClasses for what follows."""
    cluster = hayloft.cluster
    define_snapshots(cluster)
    cluster.node.start("snapshot-controller", f"--kubeconfig={cluster.kubeconfig}", "--leader-election=false")
    secret = {
        "csi.storage.k8s.io/snapshotter-secret-name": SECRET,
        "csi.storage.k8s.io/snapshotter-secret-namespace": "default",
    }
    classes = [{"name": "pinned", "parameters": {"versions": "required", **secret}}]
    hayloft.upgrade(snapshots={"enabled": True, "classes": classes})
    make_versioned_bucket(cluster, hayloft.store)
    hayloft.kubectl.apply(
        hayloft.storage_class("versions", hayloft.class_parameters("data", bucket=VERSIONED_BUCKET)),
        hayloft.storage_class("growing", hayloft.class_parameters("train"), allowVolumeExpansion=True),
    )
    yield hayloft
    for name in ("versions", "growing"):
        hayloft.kubectl.delete("storageclass", name)
    cluster.node.stop("snapshot-controller")


def bound(hayloft: Installation, one: Object) -> str:
    """Applies a claim and waits for its volume."""
    name = str(one["metadata"]["name"])
    hayloft.kubectl.apply(one)
    hayloft.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", f"pvc/{name}", "--timeout=60s")
    return name


def delete(hayloft: Installation, *claims: str) -> None:
    """Claims and the pods of the same names, until nothing of them is left."""
    for name in claims:
        hayloft.kubectl.delete("pod", name, now=True)
    for name in claims:
        hayloft.kubectl.delete("pvc", name)
    hayloft.wait_until_clean()
    hayloft.kubectl.wait_for(lambda: not any(hayloft.volumes_of(name) for name in claims), "the volumes are deleted")


def records(hayloft: Installation) -> set[str]:
    """Of snapshots, in the registry."""
    found = hayloft.cluster.node.run("find", "/var/lib/hayloft/registry", "-path", "*/volumes/snapshot*", "-type", "f")
    return set(found.split())


@pytest.mark.promise("S450")
def test_a_claim_of_a_snapshot_shows_what_was_overwritten_since(snapshots: Installation) -> None:
    hayloft, kubectl = snapshots, snapshots.kubectl
    upload(hayloft.cluster, hayloft.store, "data", FILES, bucket=VERSIONED_BUCKET)
    bound(hayloft, claim("today", "versions"))
    snapshot = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "pinned", "namespace": "default"},
        "spec": {"volumeSnapshotClassName": "pinned", "source": {"persistentVolumeClaimName": "today"}},
    }
    kubectl.apply(snapshot)
    kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", f"{SNAPSHOTS}/pinned", "--timeout=60s")
    assert len(records(hayloft)) == 1
    # No node has read an object yet, so that none can be in a cache.
    upload(hayloft.cluster, hayloft.store, "data", FILES, bucket=VERSIONED_BUCKET, version="new ")
    # The claim itself has no version pinned: an error, and no other bytes.
    kubectl.apply(pod("today", of_claim("today")))
    kubectl.wait_for_pod("today", "Failed")
    assert "Stale file handle" in kubectl("logs", "today")
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "pinned"}
    bound(hayloft, claim("restored", "versions", dataSource=source))
    hayloft.check(pod("restored", of_claim("restored")), FILES)
    assert hayloft.warnings("pinned") == []
    assert hayloft.warnings("restored") == []
    delete(hayloft, "today")
    # The snapshot outlives the claim that it was made of.
    kubectl.delete("pod", "restored", now=True)
    hayloft.check(pod("restored", of_claim("restored")), FILES)
    delete(hayloft, "restored")
    kubectl.delete(SNAPSHOTS, "pinned")
    contents = "volumesnapshotcontents.snapshot.storage.k8s.io"
    kubectl.wait_for(lambda: not kubectl.objects(contents), "the content of the snapshot is deleted")
    assert records(hayloft) == set()


@pytest.mark.promise("S451")
def test_a_claim_of_a_claim_shows_the_same_dataset(snapshots: Installation) -> None:
    bound(snapshots, claim("original", "train"))
    source = {"kind": "PersistentVolumeClaim", "name": "original"}
    bound(snapshots, claim("copied", "train", dataSource=source))
    snapshots.check(pod("copied", of_claim("copied")), TRAIN)
    assert snapshots.warnings("copied") == []
    delete(snapshots, "copied", "original")


@pytest.mark.promise("S452")
def test_a_larger_claim_is_larger_at_once(snapshots: Installation) -> None:
    """Also while a pod uses it, whose volume kubelet would not enlarge because it is read-only."""
    kubectl = snapshots.kubectl
    bound(snapshots, claim("larger", "growing"))
    reader = start_reader(snapshots, "larger", of_claim("larger"))
    kubectl("patch", "pvc", "larger", "--patch", '{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}')
    kubectl("wait", "--for=jsonpath={.status.capacity.storage}=2Gi", "pvc/larger", "--timeout=60s")

    found = kubectl.get("pvc", "larger")
    assert found is not None
    # Such as Resizing and FileSystemResizePending.
    assert [one["type"] for one in found["status"].get("conditions", ()) if "esiz" in one["type"]] == []
    assert not found["status"].get("allocatedResourceStatuses")
    assert snapshots.warnings("larger") == []
    reader.assert_faultless()
    delete(snapshots, "larger")


def attributes_class(name: str, parameters: dict[str, str]) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttributesClass",
        "metadata": {"name": name},
        "driverName": DRIVER,
        "parameters": parameters,
    }


@pytest.mark.promise("S453")
def test_the_volume_attributes_class_of_a_claim_is_changed(snapshots: Installation) -> None:
    kubectl = snapshots.kubectl
    kubectl.apply(
        attributes_class("warm", {"warmup": "background"}), attributes_class("renamed", {"url": "s3://other/data"})
    )
    bound(snapshots, claim("changed", "train"))
    kubectl("patch", "pvc", "changed", "--patch", '{"spec": {"volumeAttributesClassName": "warm"}}')
    current = "jsonpath={.status.currentVolumeAttributesClassName}"
    kubectl("wait", f"--for={current}=warm", "pvc/changed", "--timeout=60s")
    start_reader(snapshots, "changed", of_claim("changed"))
    kubectl.wait_for(
        lambda: [one for one in kubectl.events("changed") if one[0] == "WarmupComplete"], "its warmup is complete", 60
    )
    assert snapshots.warnings("changed") == []
    # What a volume shows cannot be changed.
    kubectl("patch", "pvc", "changed", "--patch", '{"spec": {"volumeAttributesClassName": "renamed"}}')
    said = snapshots.warning("changed", "VolumeModifyFailed")
    assert "url" in said
    assert kubectl("get", "pvc", "changed", f"--output={current}") == "warm"
    delete(snapshots, "changed")
    for name in ("warm", "renamed"):
        kubectl.delete("volumeattributesclass", name)
