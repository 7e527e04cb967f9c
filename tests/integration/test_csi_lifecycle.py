"""The lifecycle of volumes in the real driver: all processes, real mounts, a dataset of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.all_in_one import TIMEOUT_S, AllInOne, is_running, until
from tests.support.csi_calls import CsiClient, Mode, mount_capability, publish_request, refused

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk (a cache on tmpfs is refused), with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def dataset(home: Path) -> dict[str, str]:
    """Relative path to SHA-256, of a dataset below ``home / "data"``."""
    draw = random.Random(7)
    digests = {}
    for name, size_bytes in {"a.bin": 10, "train/0.jpg": 110_000, "train/deep/1.tar": 9_000_001, "empty": 0}.items():
        path = home / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = draw.randbytes(size_bytes)
        path.write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


@pytest.fixture
def driver(home: Path) -> Iterator[AllInOne]:
    made = AllInOne(home)
    yield made
    made.close()


@pytest.fixture
def url(home: Path, dataset: dict[str, str]) -> str:
    return f"file://{home}/data"


@pytest.fixture
def staging(home: Path) -> Path:
    path = home / "staging"
    path.mkdir()
    return path


def digests_below(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def delete(client: CsiClient, volume_id: str) -> None:
    client.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id), timeout=30)


def test_a_dynamic_volume_is_created_used_and_deleted_without_remains(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    target = home / "pods" / "1" / "mount"
    volume = client.create("pvc-1", parameters={"url": url})
    assert volume.capacity_bytes == sum(path.stat().st_size for path in (home / "data").rglob("*") if path.is_file())
    client.stage(volume, staging)
    client.publish(volume, staging, target)
    assert digests_below(target) == dataset
    assert digests_below(target) == dataset, "and again, from the cache"
    with pytest.raises(OSError, match="Read-only") as caught:
        (target / "new").write_text("x")
    assert caught.value.errno == errno.EROFS
    usage = {entry.unit: entry.total for entry in client.stats(volume.volume_id, target).usage}
    assert usage == {csi_pb2.VolumeUsage.BYTES: volume.capacity_bytes, csi_pb2.VolumeUsage.INODES: len(dataset)}
    client.unpublish(volume.volume_id, target)
    client.unstage(volume.volume_id, staging)
    delete(client, volume.volume_id)
    assert MountTable.read().below(home) == ()
    with refused(Code.NOT_FOUND):
        client.stats(volume.volume_id, target)
    assert driver.end(signal.SIGTERM) == 0
    assert not driver.socket.exists()
    assert "Traceback" not in driver.log.read_text()


@pytest.mark.promise("S285")
def test_no_process_loads_numpy_or_pandas_with_arrow(driver: AllInOne, url: str, staging: Path, home: Path) -> None:
    """Both are installed here, and Arrow loads what it finds: 44 MB for each process, in a virtual environment alone,
    since the image has neither."""
    assert importlib.util.find_spec("numpy")
    assert importlib.util.find_spec("pandas")
    driver.forked = False
    client = driver.start()
    volume = client.create("pvc-1", parameters={"url": url})
    client.stage(volume, staging)
    maps = {}
    for pid in driver.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            maps[pid] = Path(f"/proc/{pid}/maps").read_text()
    having = {name: sum(f"/{name}/" in text for text in maps.values()) for name in ("pyarrow", "numpy", "pandas")}
    assert having["pyarrow"] == 2, "the daemon and the process that starts listings"
    assert driver.process is not None
    assert "/pyarrow/" not in maps[driver.process.pid], "the controller sends a manifest on as it is"
    assert (having["numpy"], having["pandas"]) == (0, 0)
    client.unstage(volume.volume_id, staging)


def test_a_static_volume_and_an_inline_volume_need_no_create(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    static = csi_pb2.Volume(volume_id="my-static", volume_context={"url": url, "include": "train/**"})
    reader = {"volume_capability": mount_capability(Mode.MULTI_NODE_READER_ONLY)}
    client.stage(static, staging, **reader)
    client.publish(static, staging, home / "target", **reader)
    assert set(digests_below(home / "target")) == {"train/0.jpg", "train/deep/1.tar"}
    context = {"url": url, "csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.uid": "u"}
    inline = csi_pb2.Volume(volume_id="csi-0123", volume_context=context)
    client.node.NodePublishVolume(publish_request(inline, None, home / "inline-target"), timeout=30)
    assert digests_below(home / "inline-target") == dataset
    client.unpublish("csi-0123", home / "inline-target")
    client.unpublish("my-static", home / "target")
    client.unstage("my-static", staging)
    assert MountTable.read().below(home) == ()


@pytest.mark.promise("S86")
def test_readers_survive_a_restart_of_the_cache_daemon(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    volume = client.create("pvc-1", parameters={"url": url})
    client.stage(volume, staging)
    client.publish(volume, staging, home / "target")
    before = driver.children()
    assert set(before) == {"keeper", "cache"}
    os.kill(before["cache"], signal.SIGKILL)
    until(lambda: driver.children().get("cache") not in (None, before["cache"]), "the cache is started again")
    until(driver.is_ready, "the driver is ready again")
    assert driver.children()["keeper"] == before["keeper"]
    assert digests_below(home / "target") == dataset
    client.stage(volume, staging)
    assert not client.stats(volume.volume_id, home / "target").volume_condition.abnormal


def test_a_clean_shutdown_unmounts_published_volumes_that_are_in_use(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    volume = client.create("pvc-1", parameters={"url": url})
    client.stage(volume, staging)
    client.publish(volume, staging, home / "target")
    children = driver.children()
    with (home / "target" / "a.bin").open("rb"):
        assert driver.end(signal.SIGINT) == 0
    assert MountTable.read().below(home) == ()
    assert not any(is_running(process_id) for process_id in children.values())
    assert not driver.socket.exists()


def test_the_children_of_a_killed_driver_end_and_the_next_driver_repairs_its_mounts(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    volume = client.create("pvc-1", parameters={"url": url})
    client.stage(volume, staging)
    client.publish(volume, staging, home / "target")
    children = driver.children()
    run_directory = driver.run_directory()
    driver.end(signal.SIGKILL)
    until(lambda: not any(is_running(process_id) for process_id in children.values()), "the children have ended")
    client.close()
    client = driver.start()
    assert not run_directory.exists(), "what the killed one left is swept"
    assert client.create("pvc-1", parameters={"url": url}) == volume, "the registry is on disk"
    client.unpublish(volume.volume_id, home / "target")
    client.unstage(volume.volume_id, staging)
    assert MountTable.read().below(home) == ()
    client.stage(volume, staging)
    client.publish(volume, staging, home / "target")
    assert digests_below(home / "target") == dataset


def test_a_second_driver_on_the_same_socket_or_cache_is_refused(driver: AllInOne, home: Path) -> None:
    driver.start()
    same_socket = _run(driver.command())
    assert same_socket.returncode == 2
    assert "served by another process" in same_socket.stderr
    other = [word.replace("csi.sock", "other.sock") for word in driver.command()]
    same_cache = _run(other)
    assert same_cache.returncode != 0
    assert str(driver.cache) in same_cache.stderr
    assert "Traceback" not in same_cache.stderr
    assert not (home / "other.sock").exists()
    assert driver.is_ready()


def test_a_missing_cache_directory_is_reported_in_one_line(driver: AllInOne) -> None:
    driver.cache.rmdir()
    result = _run(driver.command())
    assert result.returncode == 2
    assert result.stderr.startswith("hayloft: --cache-dir")
    assert str(driver.cache) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not driver.cache.exists()


def test_a_cache_directory_in_memory_is_reported_by_the_child_in_one_line(driver: AllInOne) -> None:
    memory = tempfile.mkdtemp(prefix="hayloft-", dir="/dev/shm")
    try:
        result = _run([*driver.command(), f"--cache-dir={memory}"])
        assert result.returncode == 1
        complaints = [line for line in result.stderr.splitlines() if line.startswith("hayloft: ")]
        assert len(complaints) == 1
        assert memory in complaints[0]
        assert "tmpfs" in complaints[0]
        assert not driver.socket.exists()
    finally:
        shutil.rmtree(memory)


def test_a_missing_dataset_is_refused_without_remains(driver: AllInOne, home: Path, staging: Path) -> None:
    client = driver.start()
    with refused(Code.NOT_FOUND):
        client.create("pvc-1", parameters={"url": f"file://{home}/nowhere"})
    assert list((home / "registry").rglob("*.json")) == []
    static = csi_pb2.Volume(volume_id="s", volume_context={"url": f"file://{home}/nowhere"})
    with refused(Code.NOT_FOUND):
        client.stage(static, staging)
    assert MountTable.read().below(home) == ()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


DIFFERING = {
    "url": "file://{home}/other",
    "include": "*.bin",
    "uid": "1000",
    "fileMode": "0400",
    "deadline": "1h",
    "mountOptions": "noexec",
}


@pytest.mark.promise("S224")
def test_two_volumes_with_one_handle_and_other_attributes_are_refused(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    """Kubelet stages a volumeHandle once, and publishes to the pods of every PersistentVolume that has it."""
    (home / "other").mkdir()
    (home / "other" / "b.bin").write_bytes(b"other")
    client = driver.start()
    first = csi_pb2.Volume(volume_id="shared", volume_context={"url": url})
    client.stage(first, staging)
    client.publish(first, staging, home / "first")
    for key, value in DIFFERING.items():
        context = {"url": url, key: value.format(home=home)}
        second = csi_pb2.Volume(volume_id="shared", volume_context=context)
        with refused(Code.ALREADY_EXISTS) as refusals:
            client.publish(second, staging, home / "second")
        assert re.search(rf"\({key}: .* there, .* here\).*volumeHandle", refusals[0].message)
        (home / "staging-2").mkdir(exist_ok=True)
        for path in (staging, home / "staging-2"):
            with refused(Code.ALREADY_EXISTS) as refusals:
                client.stage(second, path)
            assert "volumeHandle" in refusals[0].message
        assert MountTable.read().at(home / "second") is None
        assert MountTable.read().at(home / "staging-2") is None
    # The same volume for another namespace, and facts that kubelet adds, are no other volume.
    same = {"url": f" {url} ", "uid": "0", "csi.storage.k8s.io/pod.name": "p", "storage.kubernetes.io/x": "1"}
    client.publish(csi_pb2.Volume(volume_id="shared", volume_context=same), staging, home / "third")
    assert digests_below(home / "third") == dataset
    # Once nothing uses it, the handle may name another dataset.
    for target in ("first", "third"):
        client.unpublish("shared", home / target)
    client.unstage("shared", staging)
    other = csi_pb2.Volume(volume_id="shared", volume_context={"url": f"file://{home}/other", "snapshotMaxAge": "0s"})
    client.stage(other, staging)
    client.publish(other, staging, home / "second")
    assert (home / "second" / "b.bin").read_bytes() == b"other"
    client.unpublish("shared", home / "second")
    client.unstage("shared", staging)


@pytest.mark.promise("S224")
def test_another_volume_with_the_same_handle_is_refused_after_a_restart_of_the_daemon(
    driver: AllInOne, dataset: dict[str, str], url: str, staging: Path, home: Path
) -> None:
    client = driver.start()
    first = csi_pb2.Volume(volume_id="shared", volume_context={"url": url})
    client.stage(first, staging)
    os.kill(driver.children()["cache"], signal.SIGKILL)
    second = csi_pb2.Volume(volume_id="shared", volume_context={"url": f"{url}/train"})

    def is_refused() -> bool:
        with pytest.raises(grpc.RpcError) as caught:
            client.publish(second, staging, home / "second")
        return caught.value.code() is Code.ALREADY_EXISTS

    until(is_refused, "the second volume is refused")
    client.publish(first, staging, home / "first")
    assert digests_below(home / "first") == dataset
    client.unpublish("shared", home / "first")
    client.unstage("shared", staging)
