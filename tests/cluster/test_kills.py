"""What ends while a pod reads, and what the pod notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.datasets import some_files, upload
from tests.cluster.installation import NAMESPACE, Installation, Reader, claim, of_claim, start_reader

pytestmark = pytest.mark.promise("S312")

FILES = some_files(2000)

Measured = Callable[[str], None]


@pytest.fixture(scope="module")
def reader(hayloft: Installation) -> Iterator[Reader]:
    """A pod that reads a dataset of small files. Each open goes to the daemon, so that it notices what happens."""
    upload(hayloft.cluster, hayloft.store, "kills", FILES)
    hayloft.kubectl.apply(
        hayloft.storage_class("kills", hayloft.class_parameters("kills", opens="daemon")), claim("kills", "kills")
    )
    made = start_reader(hayloft, "reader", of_claim("kills"))
    yield made
    hayloft.kubectl.delete("pod", "reader", now=True)
    hayloft.kubectl.delete("pvc", "kills")
    hayloft.kubectl.delete("storageclass", "kills")
    hayloft.wait_until_clean()


def is_back(hayloft: Installation, component: str) -> None:
    hayloft.kubectl.wait_for_pod(hayloft.pod_name(component), namespace=NAMESPACE, timeout_s=120)


def test_the_daemon_is_killed_again_and_again(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    stalls = []
    pod = hayloft.pod_name("node")
    for _ in range(5):
        since = time.time()
        hayloft.cluster.kill_child(pod, "cache", NAMESPACE)
        reader.goes_on()
        stalls.append(reader.longest_stall_s(since))
    reader.assert_faultless()
    assert hayloft.restarts(pod) == 0, "its supervisor starts it again, and not kubelet"
    measured(f"daemon killed five times: readers wait for {', '.join(f'{one:.1f}' for one in stalls)} s")


def test_the_supervisor_of_the_daemon_is_killed(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    """Then the daemon ends with it, and kubelet starts both again."""
    since = time.time()
    hayloft.cluster.kill_container(hayloft.pod_name("node"), "cache", NAMESPACE)
    reader.goes_on()
    is_back(hayloft, "node")
    reader.assert_faultless()
    measured(f"supervisor killed: readers wait for {reader.longest_stall_s(since):.1f} s")


def test_the_node_plugin_is_killed(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    since = time.time()
    hayloft.cluster.kill_container(hayloft.pod_name("node"), "hayloft", NAMESPACE)
    is_back(hayloft, "node")
    reader.goes_on()
    reader.assert_faultless()
    measured(f"node plugin killed: readers wait for {reader.longest_stall_s(since):.1f} s")


def test_the_keeper_is_killed_while_the_daemon_runs(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    since = time.time()
    hayloft.cluster.kill_container(hayloft.pod_name("keeper"), "keeper", NAMESPACE)
    is_back(hayloft, "keeper")

    def holds_the_mounts() -> bool:
        logs = hayloft.kubectl("logs", hayloft.pod_name("node"), "--container=cache", f"--namespace={NAMESPACE}")
        return "it holds them again" in logs

    # The daemon looks every few seconds. Mounts of which both die before are lost.
    hayloft.kubectl.wait_for(holds_the_mounts, "the new keeper holds the mounts", 60)
    reader.goes_on()
    hayloft.cluster.kill_container(hayloft.pod_name("node"), "cache", NAMESPACE)
    reader.goes_on()
    is_back(hayloft, "node")
    reader.assert_faultless()
    measured(f"keeper killed, and then the daemon: readers wait for {reader.longest_stall_s(since):.1f} s")


def test_kubelet_is_restarted(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    since = time.time()
    hayloft.cluster.node.stop("kubelet")
    hayloft.cluster.start_kubelet()
    is_back(hayloft, "node")
    reader.goes_on()
    reader.assert_faultless()
    measured(f"kubelet restarted: readers wait for {reader.longest_stall_s(since):.1f} s")


def test_containerd_is_restarted(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    since = time.time()
    hayloft.cluster.node.stop("containerd")
    hayloft.cluster.start_containerd()
    is_back(hayloft, "node")
    reader.goes_on()
    reader.assert_faultless()
    measured(f"containerd restarted: readers wait for {reader.longest_stall_s(since):.1f} s")


def test_the_node_pod_is_upgraded_and_rolled_back(hayloft: Installation, reader: Reader, measured: Measured) -> None:
    since = time.time()
    before = hayloft.pod_name("node")
    settings = {**hayloft.values["settings"], "HAYLOFT_SCRUB_RATE": "0"}
    hayloft.upgrade(settings=settings)
    upgraded = hayloft.pod_name("node")
    assert upgraded != before
    reader.goes_on()
    longest = reader.longest_stall_s(since)
    since = time.time()
    hayloft.kubectl.helm("rollback", "hayloft", f"--namespace={NAMESPACE}", "--wait", "--timeout=4m")
    hayloft.wait_for_rollout()
    assert hayloft.pod_name("node") != upgraded
    reader.goes_on()
    reader.assert_faultless()
    measured(f"helm upgrade and rollback: readers wait for {longest:.1f} and {reader.longest_stall_s(since):.1f} s")
