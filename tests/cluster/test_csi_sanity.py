"""csi-sanity, the conformance suite of Kubernetes, against the driver in one process tree and in its own processes with
a registry in an object store. ``make sanity`` runs this file alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountTable
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.architecture.source_tree import REPOSITORY
from tests.support.all_in_one import AllInOne
from tests.support.daemons import stop, wait_until
from tests.support.seaweedfs import seaweed  # noqa: F401
from tests.support.versioned_buckets import versioned_bucket

pytestmark = [pytest.mark.csi_sanity, pytest.mark.fuse, pytest.mark.timeout(900)]

RUNS = int(os.environ.get("HAYLOFT_SANITY_RUNS", "1"))
"""Each in another random order."""

LEAST_SPECS = 90
"""That run; the others are of calls that the driver does not claim, such as ControllerPublishVolume."""

PROGRAM = REPOSITORY / ".tools" / "bin" / "csi-sanity"
SECRETS = (
    *("CreateVolume", "DeleteVolume", "NodeStageVolume", "NodePublishVolume", "CreateSnapshot", "DeleteSnapshot"),
    *("ControllerValidateVolumeCapabilities", "ControllerExpandVolume", "ControllerModifyVolume"),
    *("ListSnapshots", "GetSnapshot"),
)

_RAN = re.compile(r"Ran (\d+) of (\d+) Specs")
_PASSED = re.compile(r"(\d+) Passed.* (\d+) Failed")


@pytest.fixture
def home() -> Iterator[Path]:
    """On a real disk, with a path short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    yield path
    for entry in sorted(MountTable.read().below(path), key=lambda entry: -len(entry.mount_point)):
        bind_mounts.unmount(Path(entry.mount_point), lazy=True)
    shutil.rmtree(path)


def run_suite(home: Path, parameters: Mapping[str, str], *flags: str) -> None:
    """Fails unless every spec that runs passes, and enough run."""
    (home / "parameters.yaml").write_text(yaml.safe_dump(dict(parameters)))
    (home / "mutable.yaml").write_text(yaml.safe_dump({"warmup": "background"}))
    command = [
        *(str(PROGRAM), "--ginkgo.randomize-all", "--ginkgo.no-color"),
        *(f"--csi.mountdir={home}/target", f"--csi.stagingdir={home}/staging"),
        *(
            f"--csi.testvolumeparameters={home}/parameters.yaml",
            f"--csi.testvolumemutableparameters={home}/mutable.yaml",
        ),
        *flags,
    ]
    for _ in range(RUNS):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        ran, passed = _RAN.search(done.stdout), _PASSED.search(done.stdout)
        assert done.returncode == 0, done.stdout[-8000:]
        assert ran is not None
        assert passed is not None
        assert int(passed[2]) == 0
        assert int(ran[1]) >= LEAST_SPECS, done.stdout[-8000:]
        print(ran[0], done.stdout[done.stdout.rfind("Ran") :])  # noqa: T201  # for `make sanity ARGS=-s`
    assert MountTable.read().below(home / "target") == ()


@pytest.mark.promise("S334")
def test_the_driver_in_one_process_tree(home: Path) -> None:
    (home / "data").mkdir()
    for number in range(3):
        (home / "data" / f"{number}.bin").write_bytes(os.urandom(20_000))
    driver = AllInOne(home)
    try:
        driver.start()
        run_suite(home, {"url": f"file://{home}/data"}, f"--csi.endpoint={driver.socket}")
    finally:
        driver.close()


@pytest.mark.promise("S334")
@pytest.mark.server
def test_the_driver_in_its_processes_with_a_registry_in_a_bucket(home: Path, seaweed: SeaweedFsServer) -> None:  # noqa: F811
    bucket = versioned_bucket(seaweed, f"sanity-{os.urandom(4).hex()}")
    for number in range(3):
        bucket.put(f"{number}.bin", os.urandom(20_000))
    seaweed.create_bucket(f"{bucket.name}-registry")
    (home / "secrets.yaml").write_text(yaml.safe_dump({f"{name}Secret": dict(bucket.secrets) for name in SECRETS}))
    with ExitStack() as stack:
        stack.callback(bucket.close)
        start = _starter(home, seaweed, f"s3://{bucket.name}-registry/hayloft", stack)
        start("keeper", f"--socket={home}/keeper.sock")
        start(
            "cache",
            *(f"--socket={home}/cache.sock", f"--keeper-socket={home}/keeper.sock", f"--state-dir={home}/state"),
            *(f"--cache-dir={home}/cache", f"--kubelet-dir={home}", "--free-floor=64MiB"),
        )
        start(
            "node",
            *("--node-id=node-1", f"--daemon-socket={home}/cache.sock", f"--kubelet-dir={home}"),
            f"--endpoint=unix://{home}/node.sock",
        )
        start("controller", f"--endpoint=unix://{home}/controller.sock")
        run_suite(
            home,
            bucket.attributes,
            f"--csi.endpoint={home}/node.sock",
            f"--csi.controllerendpoint={home}/controller.sock",
            f"--csi.secrets={home}/secrets.yaml",
        )


def _starter(home: Path, server: SeaweedFsServer, registry: str, stack: ExitStack) -> Callable[..., None]:
    """Starts a process, which ``stack`` ends, and waits for its socket."""
    (home / "cache").mkdir()
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_REGION": "us-east-1",
    }

    def start(name: str, *flags: str) -> None:
        command = [sys.executable, "-m", "csi_driver.cli", name, *flags]
        if name in ("cache", "controller"):
            command += [f"--registry={registry}", f"--registry-endpoint={server.endpoint}"]
        with (home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)
        stack.callback(stop, process)
        path = home / f"{name}.sock"
        wait_until(lambda: process.poll() is not None or path.is_socket())
        assert process.poll() is None, (home / f"{name}.log").read_text()

    return start
