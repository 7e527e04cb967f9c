"""A victim, a teammate and an attacker in one daemon: reads, extended attributes, reports, warmups, views, restarts."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.mounts import bind_mounts
from csi_driver.volumes.data_plane import MountRequest, WarmupReport, WarmupRequest, WarmupState
from tests.support.daemons import DaemonBench, digest_of_objects, digest_of_tree, stop, wait_until
from tests.support.guarded_s3 import GuardedS3
from tests.support.random_bytes import random_bytes

pytestmark = pytest.mark.fuse

SECRETS = {"VICTIM": "victims-secret", "TEAMMATE": "another-secret", "OUTSIDER": "a-third-secret"}
SMALL = {f"small/{number:02}": random_bytes(number, 9_000) for number in range(20)}
OBJECTS = SMALL | {"large": random_bytes(99, 6_000_000), "empty": b""}
TOTAL_BYTES = sum(map(len, OBJECTS.values()))
WITH_BYTES = len(OBJECTS) - 1


class Bench(DaemonBench):
    """Volumes of one bucket, named by their reader."""

    server: GuardedS3

    def volume(self, name: str, key_id: str, secret: str, tenant: Tenant = ADMINISTRATOR, **attributes: str) -> Path:
        mount_point = self.directory / f"mount-{name}"
        mount_point.mkdir(exist_ok=True)
        self.mount_points.append(mount_point)
        given = {"url": "s3://data/", "endpoint": self.server.endpoint, "deadline": "2s", "requestTimeout": "2s"}
        secrets = {"access_key_id": key_id, "secret_access_key": secret}
        with self.client() as client:
            client.mount(MountRequest(name, os.fspath(mount_point), given | attributes, secrets, tenant))
        return mount_point

    def warm(self, name: str) -> WarmupReport:
        with self.client() as client:
            client.start_warmup(WarmupRequest(name))
            wait_until(lambda: client.warmup(name).state is not WarmupState.RUNNING)
            return client.warmup(name)

    def cached_bytes(self, name: str) -> int:
        with self.client() as client:
            return client.volume(name).cached_bytes

    def publishes_view(self, name: str) -> bool:
        target = self.directory / f"target-{name}"
        target.mkdir(exist_ok=True)
        with self.client() as client:
            published = client.publish(name, os.fspath(target))
        if published:
            assert digest_of_tree(target) == digest_of_objects(OBJECTS)
            bind_mounts.unmount(target)
            with self.client() as client:
                client.unpublish(name, os.fspath(target))
        return published


@pytest.fixture
def server() -> Iterator[GuardedS3]:
    with GuardedS3(OBJECTS, SECRETS) as server:
        server.readers.remove("OUTSIDER")
        yield server


@pytest.fixture
def bench(tmp_path: Path, server: GuardedS3) -> Iterator[Bench]:
    bench = Bench(tmp_path, flags=("--shared-cache-namespace=team", "--trusted-namespace=*"))
    bench.server = server
    bench.start()
    yield bench
    bench.close()


@pytest.fixture
def victim(bench: Bench) -> Path:
    """A volume that was read completely."""
    mount_point = bench.volume("victim", "VICTIM", SECRETS["VICTIM"])
    assert digest_of_tree(mount_point) == digest_of_objects(OBJECTS)
    return mount_point


def refused(root: Path, objects: Mapping[str, bytes]) -> set[int | None]:
    """The errors of reading every object that has bytes."""
    found: set[int | None] = set()
    for path, content in objects.items():
        if content:
            with pytest.raises(OSError, match=r".") as caught:
                (root / path).read_bytes()
            found.add(caught.value.errno)
    return found


@pytest.mark.promise("S141")
def test_a_forged_secret_gets_nothing_of_a_cached_dataset(bench: Bench, server: GuardedS3, victim: Path) -> None:
    attacker = bench.volume("attacker", "VICTIM", "forged")
    before = len(server.seen("GET"))
    assert refused(attacker, OBJECTS) == {errno.EKEYREJECTED}
    assert len(server.seen("GET")) > before
    assert os.getxattr(attacker / "large", "user.hayloft.cached") == b"0/6000000"
    assert os.getxattr(victim / "large", "user.hayloft.cached") == b"6000000/6000000"
    bench.volume("again", "VICTIM", SECRETS["VICTIM"])
    assert (bench.cached_bytes("attacker"), bench.cached_bytes("again")) == (0, TOTAL_BYTES)
    assert bench.publishes_view("victim")
    assert not bench.publishes_view("attacker")
    assert digest_of_tree(victim) == digest_of_objects(OBJECTS)


@pytest.mark.promise("S141")
def test_a_warmup_of_a_cached_dataset_is_of_no_use_to_a_credential_that_may_not_read(
    bench: Bench, victim: Path
) -> None:
    outsider = bench.volume("outsider", "OUTSIDER", SECRETS["OUTSIDER"])
    report = bench.warm("outsider")
    assert (report.done_bytes, report.fetched_bytes, report.failed_files) == (0, 0, WITH_BYTES)
    assert refused(outsider, OBJECTS) == {errno.EACCES}
    assert bench.cached_bytes("outsider") == 0


@pytest.mark.promise("S142")
def test_a_teammate_costs_one_request_for_each_object_however_it_is_read(
    bench: Bench, server: GuardedS3, victim: Path
) -> None:
    teammate = bench.volume("teammate", "TEAMMATE", SECRETS["TEAMMATE"])
    assert digest_of_tree(teammate) == digest_of_objects(OBJECTS)
    requests = server.asked_by("TEAMMATE")
    assert {request.headers["range"] for request in requests} == {"bytes=0-0"}
    assert sorted(request.key for request in requests) == sorted(key for key in OBJECTS if key != "empty")
    assert bench.publishes_view("teammate")
    assert len(server.asked_by("TEAMMATE")) == WITH_BYTES


@pytest.mark.promise("S142")
@pytest.mark.parametrize("way", ["warmup", "view"])
def test_a_warmup_and_a_view_prove_what_is_cached_and_fetch_nothing(
    bench: Bench, server: GuardedS3, victim: Path, way: str
) -> None:
    teammate = bench.volume("teammate", "TEAMMATE", SECRETS["TEAMMATE"])
    if way == "warmup":
        report = bench.warm("teammate")
        assert (report.state, report.done_bytes, report.fetched_bytes) == (WarmupState.COMPLETE, TOTAL_BYTES, 0)
    else:
        assert bench.publishes_view("teammate")
    requests = server.asked_by("TEAMMATE")
    assert sorted(request.key for request in requests) == sorted(key for key in OBJECTS if key != "empty")
    assert {request.headers["range"] for request in requests} == {"bytes=0-0"}
    assert digest_of_tree(teammate) == digest_of_objects(OBJECTS)
    assert len(server.asked_by("TEAMMATE")) == WITH_BYTES


@pytest.mark.promise("S142")
def test_proofs_survive_a_killed_daemon_and_the_store_may_be_down(
    bench: Bench, server: GuardedS3, victim: Path
) -> None:
    attacker = bench.volume("attacker", "VICTIM", "forged")
    stop(bench.processes[-1], signal.SIGKILL)
    bench.start()
    before = len(server.seen("GET"))
    assert digest_of_tree(victim) == digest_of_objects(OBJECTS)
    assert len(server.seen("GET")) == before
    assert refused(attacker, OBJECTS) == {errno.EKEYREJECTED}
    server.go_away()
    try:
        assert digest_of_tree(victim) == digest_of_objects(OBJECTS)
    finally:
        server.come_back()


@pytest.mark.promise("S146")
def test_namespaces_that_share_the_cache_read_what_one_of_them_has_read(bench: Bench, server: GuardedS3) -> None:
    team = Tenant("team", inline=True)
    first = bench.volume("first", "VICTIM", SECRETS["VICTIM"], team)
    assert digest_of_tree(first) == digest_of_objects(OBJECTS)
    before = len(server.seen("GET"))
    second = bench.volume("second", "TEAMMATE", SECRETS["TEAMMATE"], team)
    assert digest_of_tree(second) == digest_of_objects(OBJECTS)
    assert len(server.seen("GET")) == before
    outside = bench.volume("outside", "VICTIM", "forged", Tenant("elsewhere", inline=True))
    assert refused(outside, OBJECTS) == {errno.EKEYREJECTED}


@pytest.mark.promise("S146")
def test_namespaces_that_share_the_cache_do_not_read_what_others_have_read(
    bench: Bench, server: GuardedS3, victim: Path
) -> None:
    member = bench.volume("member", "VICTIM", "forged", Tenant("team", inline=True))
    assert refused(member, OBJECTS) == {errno.EKEYREJECTED}
