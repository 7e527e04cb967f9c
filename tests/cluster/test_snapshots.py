"""Snapshots, copies and changes of claims, as their users write them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hayloft_lab.cluster.kubectl import Object
from tests.cluster.datasets import (
    READ_ALL,
    TRAIN,
    VERSIONED_BUCKET,
    delete_version,
    make_versioned_bucket,
    some_files,
    upload,
)
from tests.cluster.installation import (
    DRIVER,
    NAMESPACE,
    SECRET,
    Installation,
    claim,
    define_snapshots,
    of_claim,
    pod,
    python,
    start_reader,
)

FILES = some_files(40)
OTHERS = some_files(25)

SNAPSHOTS = "volumesnapshots.snapshot.storage.k8s.io"
CONTENTS = "volumesnapshotcontents.snapshot.storage.k8s.io"
GROUPS = "volumegroupsnapshots.groupsnapshot.storage.k8s.io"
GROUP_CONTENTS = "volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io"
GROUP_VERSION = "groupsnapshot.storage.k8s.io/v1"


SECRETS_ALONE = {
    f"csi.storage.k8s.io/{purpose}-secret-{part}": value
    for purpose in ("provisioner", "node-stage", "node-publish")
    for part, value in (("name", SECRET), ("namespace", "default"))
}
"""Parameters of a class for claims of snapshots: a dataset is that of the snapshot."""


@pytest.fixture(scope="module")
def snapshots(hayloft: Installation) -> Iterator[Installation]:
    """With snapshots, as docs/snapshots.md says how to have them, and StorageClasses for what follows."""
    cluster = hayloft.cluster
    define_snapshots(cluster)
    groups = "--feature-gates=CSIVolumeGroupSnapshot=true"
    cluster.node.start("snapshot-controller", f"--kubeconfig={cluster.kubeconfig}", "--leader-election=false", groups)
    secret = {
        "csi.storage.k8s.io/snapshotter-secret-name": SECRET,
        "csi.storage.k8s.io/snapshotter-secret-namespace": "default",
    }
    classes = [
        {"name": "pinned", "parameters": {"versions": "required", **secret}},
        {"name": "where-possible", "parameters": secret},
    ]
    hayloft.upgrade(snapshots={"enabled": True, "groups": True, "classes": classes})
    make_versioned_bucket(cluster, hayloft.store)
    hayloft.kubectl.apply(
        hayloft.storage_class("versions", hayloft.class_parameters("data", bucket=VERSIONED_BUCKET)),
        hayloft.storage_class("others", hayloft.class_parameters("others", bucket=VERSIONED_BUCKET)),
        hayloft.storage_class("expiring", hayloft.class_parameters("expiring", bucket=VERSIONED_BUCKET)),
        hayloft.storage_class("restoring", SECRETS_ALONE),
        hayloft.storage_class("growing", hayloft.class_parameters("train"), allowVolumeExpansion=True),
    )
    yield hayloft
    for name in ("versions", "others", "expiring", "restoring", "growing"):
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


def snapshot(name: str, snapshot_class: str, of_claim: str) -> Object:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"volumeSnapshotClassName": snapshot_class, "source": {"persistentVolumeClaimName": of_claim}},
    }


def ready(hayloft: Installation, kind: str, name: str) -> None:
    """Waits for a snapshot."""
    hayloft.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", f"{kind}/{name}", "--timeout=60s")


def restored(name: str, storage_class: str, of_snapshot: str) -> Object:
    """A claim of a snapshot."""
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": of_snapshot}
    return claim(name, storage_class, dataSource=source)


def delete_snapshots(hayloft: Installation, kind: str, *names: str) -> None:
    """Until no record of any snapshot is left."""
    kubectl = hayloft.kubectl
    for name in names:
        kubectl.delete(kind, name)
    kubectl.wait_for(
        lambda: not kubectl.objects(CONTENTS) and not kubectl.objects(GROUP_CONTENTS), "their contents are deleted"
    )
    assert records(hayloft) == set()


@pytest.mark.promise("S450")
def test_a_claim_of_a_snapshot_shows_what_was_overwritten_since(snapshots: Installation) -> None:
    hayloft, kubectl = snapshots, snapshots.kubectl
    upload(hayloft.cluster, hayloft.store, "data", FILES, bucket=VERSIONED_BUCKET)
    bound(hayloft, claim("today", "versions"))
    kubectl.apply(snapshot("pinned", "pinned", "today"))
    ready(hayloft, SNAPSHOTS, "pinned")
    assert len(records(hayloft)) == 1
    # No node has read an object yet, so that none can be in a cache.
    upload(hayloft.cluster, hayloft.store, "data", FILES, bucket=VERSIONED_BUCKET, version="new ")
    # The claim itself has no version pinned: an error, and no other bytes.
    kubectl.apply(pod("today", of_claim("today")))
    kubectl.wait_for_pod("today", "Failed")
    assert "Stale file handle" in kubectl("logs", "today")
    bound(hayloft, restored("restored", "versions", "pinned"))
    hayloft.check(pod("restored", of_claim("restored")), FILES)
    assert hayloft.warnings("pinned") == []
    assert hayloft.warnings("restored") == []
    delete(hayloft, "today")
    # The snapshot outlives the claim that it was made of.
    kubectl.delete("pod", "restored", now=True)
    hayloft.check(pod("restored", of_claim("restored")), FILES)
    delete(hayloft, "restored")
    delete_snapshots(hayloft, SNAPSHOTS, "pinned")


@pytest.mark.promise("S500")
def test_a_group_of_snapshots_is_of_all_claims_with_a_label_and_restored_one_by_one(snapshots: Installation) -> None:
    hayloft, kubectl = snapshots, snapshots.kubectl
    datasets = {"data": ("versions", FILES), "others": ("others", OTHERS)}
    for prefix, (storage_class, files) in datasets.items():
        upload(hayloft.cluster, hayloft.store, prefix, files, bucket=VERSIONED_BUCKET)
        one = claim(f"of-{prefix}", storage_class)
        one["metadata"]["labels"] = {"moment": "evening"}
        bound(hayloft, one)
    secret = {
        "csi.storage.k8s.io/group-snapshotter-secret-name": SECRET,
        "csi.storage.k8s.io/group-snapshotter-secret-namespace": "default",
    }
    group_class = {
        "apiVersion": GROUP_VERSION,
        "kind": "VolumeGroupSnapshotClass",
        "metadata": {"name": "together"},
        "driver": DRIVER,
        "deletionPolicy": "Delete",
        "parameters": {"versions": "required", **secret},
    }
    group = {
        "apiVersion": GROUP_VERSION,
        "kind": "VolumeGroupSnapshot",
        "metadata": {"name": "evening", "namespace": "default"},
        "spec": {
            "volumeGroupSnapshotClassName": "together",
            "source": {"selector": {"matchLabels": {"moment": "evening"}}},
        },
    }
    kubectl.apply(group_class, group)
    ready(hayloft, GROUPS, "evening")
    assert hayloft.warnings("evening") == []
    members = [str(one["metadata"]["name"]) for one in kubectl.objects(SNAPSHOTS)]
    assert len(members) == len(records(hayloft)) == 2
    for prefix, (_, files) in datasets.items():
        upload(hayloft.cluster, hayloft.store, prefix, files, bucket=VERSIONED_BUCKET, version="later ")
    said = set()
    for number, member in enumerate(members):
        ready(hayloft, SNAPSHOTS, member)
        name = bound(hayloft, restored(f"of-member-{number}", "restoring", member))
        kubectl.apply(pod(name, of_claim(name)))
        kubectl.wait_for_pod(name, "Succeeded")
        said.add(kubectl("logs", name))
    assert said == {f"read {len(files)} files, {sum(files.values())} bytes\n" for _, files in datasets.values()}
    delete(hayloft, "of-member-0", "of-member-1", "of-data", "of-others")
    delete_snapshots(hayloft, GROUPS, "evening")
    assert kubectl.objects(SNAPSHOTS) == []
    kubectl.delete("volumegroupsnapshotclass", "together")


@pytest.mark.promise("S501")
def test_a_snapshot_of_a_bucket_without_versions_says_what_it_cannot_promise(snapshots: Installation) -> None:
    hayloft, kubectl = snapshots, snapshots.kubectl
    bound(hayloft, claim("without", "train"))
    kubectl.apply(snapshot("loose", "where-possible", "without"), snapshot("strict", "pinned", "without"))
    ready(hayloft, SNAPSHOTS, "loose")
    said = hayloft.described_warning(SNAPSHOTS, "loose", "ObjectsNotPinned")
    assert "kept no versions" in said
    assert "Enable versioning" in said
    # A class that insists refuses it, and says the same.
    kubectl.wait_for(
        lambda: "cannot be pinned" in kubectl("describe", SNAPSHOTS, "strict"),
        "why there is no snapshot",
        60,
        lambda: kubectl("describe", SNAPSHOTS, "strict"),
    )
    assert "enable versioning of the bucket" in kubectl("describe", SNAPSHOTS, "strict")
    bound(hayloft, restored("as-before", "train", "loose"))
    hayloft.check(pod("as-before", of_claim("as-before")), TRAIN)
    delete_snapshots(hayloft, SNAPSHOTS, "loose", "strict")
    delete(hayloft, "as-before", "without")  # Kubernetes keeps a claim while a snapshot of it is being taken


@pytest.mark.newest_kubelet
@pytest.mark.promise("S502")
def test_a_pinned_version_that_was_deleted_is_an_error_that_names_it_and_data_loss(snapshots: Installation) -> None:
    hayloft, kubectl = snapshots, snapshots.kubectl
    upload(hayloft.cluster, hayloft.store, "expiring", OTHERS, bucket=VERSIONED_BUCKET)
    bound(hayloft, claim("expiring", "expiring"))
    kubectl.apply(snapshot("expiring", "pinned", "expiring"))
    ready(hayloft, SNAPSHOTS, "expiring")
    upload(hayloft.cluster, hayloft.store, "expiring", OTHERS, bucket=VERSIONED_BUCKET, version="new ")
    gone = min(OTHERS)
    version = delete_version(hayloft.cluster, hayloft.store, f"expiring/{gone}")
    bound(hayloft, restored("expired", "expiring", "expiring"))
    kubectl.apply(pod("expired", of_claim("expired"), python(READ_ALL)))
    kubectl.wait_for_pod("expired")
    said = hayloft.described_warning("pod", "expired", "ObjectsGone", 120)
    assert "not in the store any more" in said
    # Of that one, and of no other.
    (line,) = kubectl("logs", "expired").splitlines()
    assert "Stale file handle" in line
    assert gone in line
    logs = kubectl("logs", hayloft.pod_name("node"), "--container=cache", f"--namespace={NAMESPACE}")
    assert any(f"expiring/{gone}" in line and version in line for line in logs.splitlines())

    def health() -> str:
        return kubectl("get", "pod", "expired", "--output=jsonpath={.status.volumeHealth}")

    kubectl.wait_for(lambda: "ObjectsGone" in health(), "its health", 150, health)
    assert "DataLoss" in health()
    delete(hayloft, "expired", "expiring")
    delete_snapshots(hayloft, SNAPSHOTS, "expiring")


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
