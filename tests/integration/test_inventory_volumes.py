"""Volumes of an inventory from the call of kubelet to the read: all processes, a real store with two buckets."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from hayloft_lab.buckets import client_of
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.integration.test_profiles_at_the_door import publish
from tests.support.all_in_one import AllInOne
from tests.support.csi_calls import mount_capability, refused, stage_request
from tests.support.daemons import Bucket
from tests.support.inventories import FOLDER, FORMATS, MANIFEST, Row, inventory_of
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

CONTENT = {"a": b"first", "dir/b c+d": b"second", "dir/changed": b"old", "deleted": b"gone", "x.tmp": b"no"}


def listed(bucket: Bucket, client: object) -> list[Row]:
    found = client.list_objects_v2(Bucket=bucket.name)["Contents"]  # type: ignore[attr-defined]
    return [
        Row(entry["Key"], entry["Size"], entry["ETag"].strip('"'), int(entry["LastModified"].timestamp() * 1000))
        for entry in found
    ]


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    """The dataset, changed after its inventories were made: one in each format, in a bucket of their own."""
    seaweed.create_bucket("corpus")
    seaweed.create_bucket("inventories")
    made = Bucket(seaweed, "corpus", {})
    made.fill(CONTENT)
    client = client_of(seaweed.endpoint, seaweed.access_key_id, seaweed.secret_access_key)
    rows = [row._replace(bucket="corpus") for row in listed(made, client)]
    for form in FORMATS:
        folder = f"{form}/{FOLDER}"
        objects = inventory_of(form, rows[:2], rows[2:], bucket="corpus", folder=folder, manifest=f"{form}/{MANIFEST}")
        for key, content in objects.items():
            client.put_object(Bucket="inventories", Key=key, Body=content)
    for key, content in inventory_of("CSV", rows, bucket="other", folder="o/", manifest="o/x/manifest.json").items():
        client.put_object(Bucket="inventories", Key=key, Body=content)
    prefix = next(row.key for row in rows if row.key.endswith("dir/changed")).removesuffix("dir/changed")
    client.put_object(Bucket="corpus", Key=f"{prefix}dir/changed", Body=b"new")
    client.put_object(Bucket="corpus", Key=f"{prefix}later", Body=b"later")
    client.delete_object(Bucket="corpus", Key=f"{prefix}deleted")
    client.close()
    return made


@pytest.fixture
def driver() -> Iterator[AllInOne]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    made = AllInOne(home)
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.mark.promise("S630")
@pytest.mark.parametrize(("way", "form"), [*zip(["dynamic", "static", "inline"], FORMATS, strict=True)])
def test_a_volume_shows_its_inventory_and_reads_by_its_etags(
    driver: AllInOne, bucket: Bucket, way: str, form: str
) -> None:
    client = driver.start()
    attributes = {**bucket.attributes, "inventory": f"s3://inventories/{form}/{FOLDER}", "exclude": "*.tmp"}
    target = publish(client, bucket, way, attributes, driver.home)
    shown = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert shown == ["a", "deleted", "dir/b c+d", "dir/changed"]
    assert (target / "a").read_bytes() == b"first"
    assert (target / "dir/b c+d").read_bytes() == b"second"
    with pytest.raises(OSError) as changed:  # noqa: PT011  # by its number
        (target / "dir/changed").read_bytes()
    assert changed.value.errno == errno.ESTALE
    with pytest.raises(OSError) as deleted:  # noqa: PT011
        (target / "deleted").read_bytes()
    assert deleted.value.errno in (errno.ESTALE, errno.ENOENT)
    assert "the list of objects is that of s3://inventories/" in driver.log.read_text()


@pytest.mark.promise("S633")
def test_an_inventory_of_another_bucket_is_refused_by_name(driver: AllInOne, bucket: Bucket) -> None:
    client = driver.start()
    attributes = {**bucket.attributes, "inventory": "s3://inventories/o/x/manifest.json"}
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as found:
        publish(client, bucket, "dynamic", attributes, driver.home)
    assert "is of bucket 'other', and the volume's url names bucket 'corpus'" in found[0].message


def test_a_refresh_imports_the_newest_inventory_of_a_folder(
    driver: AllInOne, bucket: Bucket, seaweed: SeaweedFsServer
) -> None:
    client = driver.start()
    store = client_of(seaweed.endpoint, seaweed.access_key_id, seaweed.secret_access_key)
    folder = "refreshed/corpus/daily/"
    rows = [row._replace(bucket="corpus") for row in listed(bucket, store)]

    def deliver(date: str, rows: list[Row]) -> None:
        manifest = f"{folder}{date}/manifest.json"
        for key, content in inventory_of("Parquet", rows, bucket="corpus", folder=folder, manifest=manifest).items():
            store.put_object(Bucket="inventories", Key=key, Body=content)

    deliver("2026-11-27T01-00Z", rows[:1])
    creation = csi_pb2.CreateVolumeRequest(
        name="pvc-1",
        parameters={**bucket.attributes, "inventory": f"s3://inventories/{folder}"},
        secrets=bucket.secrets,
        volume_capabilities=[mount_capability()],
    )
    volume = client.controller.CreateVolume(creation, timeout=60).volume
    assert volume.capacity_bytes == rows[0].size
    deliver("2026-11-28T01-00Z", rows)
    client.controller.ControllerModifyVolume(
        csi_pb2.ControllerModifyVolumeRequest(
            volume_id=volume.volume_id, secrets=bucket.secrets, mutable_parameters={"refresh": "2026-11-28"}
        ),
        timeout=60,
    )
    staging = driver.home / "staging"
    staging.mkdir()
    client.node.NodeStageVolume(stage_request(volume, staging, secrets=bucket.secrets), timeout=60)
    assert sum(path.is_file() for path in staging.rglob("*")) == len(rows)
    store.close()
