"""Leases of the controller's sidecars: the real programs, with the flags of the chart, and the real API server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hayloft_lab.cluster.cluster import Cluster
from tests.architecture.driver_manifests import driver_container
from tests.cluster.installation import TOOLS, define_snapshots
from tests.support.chart_cases import CASES, rendered
from tests.support.daemons import stop, wait_until

NAMESPACE = "storage"
SIDECARS = ("csi-provisioner", "csi-snapshotter", "csi-resizer")

pytestmark = pytest.mark.api_server(*SIDECARS)

Start = Callable[[str, str], "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(TOOLS, control_plane_only=True) as made:
        define_snapshots(made)
        made.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield made


@pytest.fixture(scope="module")
def driver() -> Iterator[Path]:
    """The socket of a controller of the driver."""
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    command = [
        *(sys.executable, "-m", "csi_driver.cli", "controller"),
        *(f"--endpoint=unix://{home}/csi.sock", f"--registry={home}/registry", "--log-level=warning"),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or (home / "csi.sock").is_socket())
        yield home / "csi.sock"
    finally:
        stop(process)
        shutil.rmtree(home)


@pytest.fixture
def start(cluster: Cluster, driver: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a sidecar in a pod of this name, as far as the sidecar sees of it."""

    def start(sidecar: str, pod: str) -> subprocess.Popen[bytes]:
        arguments = driver_container(rendered(CASES["snapshots"]), "hayloft-controller", sidecar).body["args"]
        given = [one.replace("$(NAMESPACE)", NAMESPACE) for one in arguments if not one.startswith("--csi-address")]
        command = cluster.node.network_command(
            *("unshare", "--uts", "--", "sh", "-c", f'hostname {pod}; exec "$@"', "sh"),
            *(str(cluster.programs / sidecar), *given),
            *(f"--csi-address={driver}", f"--kubeconfig={cluster.kubeconfig}"),
        )
        with (tmp_path / f"{pod}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(stop, process, signal.SIGKILL)
        return process

    with ExitStack() as stack:
        yield start


@pytest.mark.promise("S508")
@pytest.mark.parametrize("sidecar", SIDECARS)
def test_a_sidecar_that_is_ended_leaves_its_lease_to_the_next_one(
    cluster: Cluster, start: Start, tmp_path: Path, sidecar: str, measured: Callable[[str], None]
) -> None:
    before = {one["metadata"]["name"] for one in cluster.kubectl.objects("leases", NAMESPACE)}

    def holder() -> str:
        """Of the lease that the sidecar has made."""
        leases = cluster.kubectl.objects("leases", NAMESPACE)
        return "".join(
            one["spec"].get("holderIdentity") or "" for one in leases if one["metadata"]["name"] not in before
        )

    def leads(pod: str) -> None:
        cluster.kubectl.wait_for(
            lambda: holder().startswith(pod), f"{pod} leads", 60, lambda: (tmp_path / f"{pod}.log").read_text()
        )

    first = start(sidecar, "first")
    leads("first")
    start(sidecar, "second")
    cluster.kubectl.wait_for(lambda: "ttempting to acquire" in (tmp_path / "second.log").read_text(), "it stands by")
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    ended = time.time()
    # Not released, it would be the first one's until it runs out, after fifteen seconds.
    assert not holder().startswith("first"), (tmp_path / "first.log").read_text()
    leads("second")
    measured(f"{sidecar}: the next one leads {time.time() - ended:.1f} s after the end of the first")
