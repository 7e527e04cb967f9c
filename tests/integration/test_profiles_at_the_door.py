"""``profile`` and warmups into memory from the call of kubelet to the pages in memory: all processes, a real store."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.rpc.pb import csi_pb2
from hayloft_bench.run.page_cache import cached_share
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.all_in_one import AllInOne
from tests.support.csi_calls import CsiClient, publish_request, refused, stage_request
from tests.support.daemons import Bucket
from tests.support.seaweedfs import seaweed

__all__ = ["seaweed"]

pytestmark = [pytest.mark.fuse, pytest.mark.server]

MIB = 1 << 20
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFsServer) -> Bucket:
    draw = random.Random(2)
    seaweed.create_bucket("door")
    bucket = Bucket(seaweed, "door", {})
    bucket.fill({"model.safetensors": draw.randbytes(24 * MIB + 3), "config.json": draw.randbytes(900)})
    return bucket


@pytest.fixture
def driver() -> Iterator[AllInOne]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    made = AllInOne(home)
    yield made
    made.close()
    shutil.rmtree(home)


def inline_volume(attributes: dict[str, str], volume_id: str = "csi-0123") -> csi_pb2.Volume:
    facts = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.uid": "u"}
    return csi_pb2.Volume(volume_id=volume_id, volume_context=attributes | facts)


def publish(client: CsiClient, bucket: Bucket, way: str, attributes: dict[str, str], home: Path) -> Path:
    """Returns the directory that the pod sees."""
    staging, target = home / "staging", home / "pods" / "1" / "mount"
    staging.mkdir()
    if way == "inline":
        volume = inline_volume(attributes)
        inline = publish_request(volume, None, target, secrets=bucket.secrets)
        client.node.NodePublishVolume(inline, timeout=60)
        return target
    volume = csi_pb2.Volume(volume_id="static-1", volume_context=attributes)
    if way == "dynamic":
        creation = csi_pb2.CreateVolumeRequest(
            name="pvc-1",
            parameters=attributes,
            secrets=bucket.secrets,
            volume_capabilities=[stage_request(volume, staging).volume_capability],
        )
        volume = client.controller.CreateVolume(creation, timeout=60).volume
    client.node.NodeStageVolume(stage_request(volume, staging, secrets=bucket.secrets), timeout=60)
    client.node.NodePublishVolume(publish_request(volume, staging, target), timeout=60)
    return target


@pytest.mark.promise("S544")
@pytest.mark.parametrize("way", ["dynamic", "static", "inline"])
def test_with_the_profile_of_inference_a_pod_starts_when_its_model_is_in_memory(
    driver: AllInOne, bucket: Bucket, way: str
) -> None:
    client = driver.start()
    target = publish(client, bucket, way, {**bucket.attributes, "profile": "inference"}, driver.home)
    files = [path for path in (driver.cache / "objects").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == bucket.total_bytes
    assert cached_share(files) == 1.0
    assert {path.name: path.read_bytes() for path in target.iterdir()} == bucket.objects


@pytest.mark.promise("S544")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("profile", "gaming", "training or inference or analytics"),
        ("readAhead", "5GiB", "1MiB to 1GiB"),
        ("wholeFiles", "model", "none or weights or all"),
        ("warmup", "ram", "none or background or wait or memory"),
        ("warmupTrace", "nothing.arrow", "there is none"),
    ],
)
def test_a_wrong_value_is_refused_at_each_door(
    driver: AllInOne, bucket: Bucket, name: str, value: str, said: str
) -> None:
    client = driver.start()
    attributes = {**bucket.attributes, name: value}
    ways = ["static", "inline"] if name == "warmupTrace" else ["dynamic", "static", "inline"]
    for number, way in enumerate(ways):
        home = driver.home / str(number)
        home.mkdir()
        with refused(Code.INVALID_ARGUMENT) as found:
            publish(client, bucket, way, attributes, home)
        assert name in found[0].message
        assert said in found[0].message
