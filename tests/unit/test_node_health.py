"""The health of volumes from the daemon's last report: how often it is asked, and what its silence means."""

from __future__ import annotations

import pytest

from csi_driver.csi.node_health import ASK_S, FRESH_S, SILENT_S, NodeHealth
from csi_driver.model.conditions import CACHE_DAEMON_UNAVAILABLE, CACHE_DISK_FAILING, MOUNT_DEAD
from csi_driver.model.errors import DaemonUnavailable, VolumeNotFound
from csi_driver.mounts.mount_table import MountEntry
from csi_driver.rpc import deadlines
from csi_driver.volumes.data_plane import HealthReport, MountRequest
from tests.support.data_planes import InMemoryDataPlane
from tests.unit.test_disk_health import Clock

DEVICE = "0:0"
"""Of every mount of ``InMemoryDataPlane``."""


def entry(device: str = DEVICE, root: str = "/", fs_type: str = "fuse.hayloft") -> MountEntry:
    return MountEntry(1, 0, device, root, "/pods/a/mount", frozenset(), fs_type, "s3://b", frozenset())


@pytest.fixture
def plane() -> InMemoryDataPlane:
    plane = InMemoryDataPlane()
    plane.mount(MountRequest("v", "/staging", {"url": "s3://b"}))
    return plane


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(plane: InMemoryDataPlane, clock: Clock) -> NodeHealth:
    return NodeHealth(plane, clock)


@pytest.mark.promise("S352")
def test_one_report_answers_for_all_volumes(health: NodeHealth, plane: InMemoryDataPlane, clock: Clock) -> None:
    for number in range(100):
        plane.mount(MountRequest(f"v{number}", f"/staging/{number}", {"url": "s3://b"}))
    for number in range(100):
        assert health.of_volume(f"v{number}", entry()).conditions == ()
    assert health.of_node() == ()
    assert plane.asked == 1
    clock.now += FRESH_S
    plane.conditions = (CACHE_DISK_FAILING, CACHE_DISK_FAILING)
    assert health.of_volume("v0", entry()).conditions == (CACHE_DISK_FAILING,)
    assert health.of_node() == (CACHE_DISK_FAILING,)
    assert plane.asked == 2


@pytest.mark.promise("S352")
def test_a_daemon_that_is_silent_is_asked_once_in_a_while(
    health: NodeHealth, plane: InMemoryDataPlane, clock: Clock
) -> None:
    plane.failure = DaemonUnavailable("no answer")
    left: list[float] = []
    plane.before = lambda: left.append(deadlines.remaining_s(1e9))
    for number in range(100):
        assert health.of_volume(f"v{number}", entry("0:7")).conditions == (CACHE_DAEMON_UNAVAILABLE,)
        assert health.of_node() == (CACHE_DAEMON_UNAVAILABLE,)
        with pytest.raises(DaemonUnavailable):
            health.require_daemon()
    assert plane.asked == 1
    assert all(0 < seconds <= ASK_S for seconds in left), "a daemon that hangs is not waited for longer"
    clock.now += SILENT_S
    plane.failure = None
    assert health.of_volume("v", entry()).conditions == ()


def test_a_view_needs_no_daemon(health: NodeHealth, plane: InMemoryDataPlane) -> None:
    from csi_driver.mounts.materialised_views import view_name

    view = entry("8:1", f"/cache/views/{view_name('v', 'content')}", "ext4")
    plane.failure = DaemonUnavailable("no answer")
    assert health.of_volume("v", view).conditions == ()
    plane.failure = None


def test_nothing_is_concluded_from_a_report_that_is_older_than_the_mount(
    health: NodeHealth, plane: InMemoryDataPlane
) -> None:
    with pytest.raises(VolumeNotFound):
        health.of_volume("late", entry())
    plane.mount(MountRequest("late", "/staging/late", {"url": "s3://b"}))
    state = health.of_volume("late", entry())
    assert state.mount is not None
    assert state.mount.total_bytes


def test_a_mount_that_no_daemon_serves_is_dead_and_another_volume_is_none(
    health: NodeHealth, plane: InMemoryDataPlane
) -> None:
    assert health.of_volume("v", entry("0:99")).conditions == (MOUNT_DEAD,)
    with pytest.raises(VolumeNotFound, match="another volume"):
        health.of_volume("other", entry())


def test_of_two_mounts_of_a_volume_the_one_that_is_shown_counts(health: NodeHealth, plane: InMemoryDataPlane) -> None:
    report = plane.health()
    (mount,) = report.mounts
    from dataclasses import replace

    old = replace(mount, device="0:1", conditions=(MOUNT_DEAD,))
    plane.health = lambda: HealthReport((), (old, mount))  # type: ignore[method-assign]
    assert health.of_volume("v", entry("0:1")).conditions == (MOUNT_DEAD,)
    assert health.of_volume("v", entry()).conditions == ()


@pytest.mark.promise("S352")
def test_a_volume_is_asked_about_without_a_path(health: NodeHealth, plane: InMemoryDataPlane) -> None:
    """Both paths of the request are optional."""
    assert health.of_any_mount("v").conditions == ()
    plane.mount(MountRequest("later", "/staging/later", {"url": "s3://b"}))
    assert health.of_any_mount("later").conditions == (), "the report was older than the mount"
    with pytest.raises(VolumeNotFound, match="volume_id"):
        health.of_any_mount("no-such-volume")


@pytest.mark.promise("S358")
def test_readiness_is_not_that_of_a_moment_ago(health: NodeHealth, plane: InMemoryDataPlane, clock: Clock) -> None:
    for asked in (1, 2):
        clock.now += FRESH_S / 10
        health.require_daemon()
        assert plane.asked == asked
