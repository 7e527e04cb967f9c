"""Read errors show in the volume's condition, as kubelet reads it, with all processes running."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import AllInOne
from tests.support.csi_calls import CsiClient
from tests.support.daemons import wait_until
from tests.support.hostile_s3 import FlipBits, HostileS3

pytestmark = pytest.mark.fuse

DRAW = random.Random(5)
OBJECTS = {f"set/{number}.bin": DRAW.randbytes(30_000 + number) for number in range(5)}


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3(OBJECTS) as server:
        yield server


@pytest.fixture
def driver(home: Path) -> Iterator[AllInOne]:
    made = AllInOne(home)
    yield made
    made.close()


@pytest.fixture
def client(driver: AllInOne) -> CsiClient:
    return driver.start()


@pytest.fixture
def volume(client: CsiClient, server: HostileS3, home: Path) -> csi_pb2.Volume:
    volume = csi_pb2.Volume(
        volume_id="static", volume_context={"url": "s3://data/set", "endpoint": server.endpoint, "anonymous": "true"}
    )
    (home / "staging").mkdir()
    client.stage(volume, home / "staging")
    client.publish(volume, home / "staging", home / "target")
    return volume


def condition(client: CsiClient, home: Path) -> csi_pb2.VolumeCondition:
    return client.stats("static", home / "target").volume_condition


def errno_of_reading(path: Path) -> int:
    with pytest.raises(OSError, match=r".") as caught:
        path.read_bytes()
    assert caught.value.errno is not None
    return caught.value.errno


def test_a_volume_with_all_its_objects_is_healthy(client: CsiClient, volume: csi_pb2.Volume, home: Path) -> None:
    for key, content in OBJECTS.items():
        assert (home / "target" / Path(key).name).read_bytes() == content
    assert not condition(client, home).abnormal


@pytest.mark.promise("S62")
def test_objects_changed_or_deleted_after_the_snapshot_make_the_condition_abnormal(
    client: CsiClient, volume: csi_pb2.Volume, home: Path, server: HostileS3
) -> None:
    kept = home / "target" / "0.bin"
    assert kept.read_bytes() == OBJECTS["set/0.bin"]
    server.put("set/0.bin", b"new and of another size")
    server.put("set/1.bin", OBJECTS["set/1.bin"][::-1])
    server.delete("set/2.bin")
    assert not condition(client, home).abnormal
    assert errno_of_reading(home / "target" / "1.bin") == errno.ESTALE
    assert errno_of_reading(home / "target" / "1.bin") == errno.ESTALE
    target = home / "target"
    wait_until(lambda: set(client.health("static", target)) == {"ObjectsChanged"})
    assert errno_of_reading(target / "2.bin") == errno.ESTALE
    wait_until(lambda: set(client.health("static", target)) == {"ObjectsChanged", "ObjectsGone"})
    assert {entry.status for entry in client.health("static", target).values()} == {csi_pb2.DATA_LOSS}
    assert condition(client, home).abnormal
    assert kept.read_bytes() == OBJECTS["set/0.bin"], "what is cached stays readable"


@pytest.mark.promise("S60")
def test_an_object_that_is_damaged_twice_is_eio_and_makes_the_condition_abnormal(
    client: CsiClient, volume: csi_pb2.Volume, home: Path, server: HostileS3
) -> None:
    assert (home / "target" / "0.bin").read_bytes() == OBJECTS["set/0.bin"]
    server.fail_next(FlipBits(11), FlipBits(11))
    assert errno_of_reading(home / "target" / "3.bin") == errno.EIO
    wait_until(lambda: condition(client, home).abnormal)
    assert "do not match their checksum" in condition(client, home).message
    assert set(client.health("static", home / "target")) == {"ObjectsDamaged"}


@pytest.mark.promise("S59")
def test_an_object_that_was_damaged_in_transit_is_read_right(
    client: CsiClient, volume: csi_pb2.Volume, home: Path, server: HostileS3
) -> None:
    server.fail_next(FlipBits(11))
    assert (home / "target" / "4.bin").read_bytes() == OBJECTS["set/4.bin"]
    assert not condition(client, home).abnormal
