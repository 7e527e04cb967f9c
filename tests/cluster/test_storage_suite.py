"""The tests that Kubernetes has for the storage of other vendors, as far as they write nothing into a volume.

``make storage-suite`` builds and runs them: 10 minutes once, then 6.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hayloft_lab.cluster.images import write_image
from hayloft_lab.cluster.node import STORE_ADDRESS
from tests.cluster.installation import DRIVER, TOOLS, Installation, define_snapshots

pytestmark = [pytest.mark.storage_suite, pytest.mark.promise("S705"), pytest.mark.timeout(1800)]

SELECTED = (
    "CSI Ephemeral-volume .* ephemeral should create read-only inline ephemeral volume",
    "Generic Ephemeral-volume .* ephemeral should create read-only inline ephemeral volume",
    "Generic Ephemeral-volume .*late-binding.* ephemeral should support multiple inline ephemeral volumes",
    "Generic Ephemeral-volume .* ephemeral should support expansion of pvcs created for ephemeral pvcs",
    "provisioning should mount multiple PV pointing to the same storage on the same node",
    "read-write-once-pod should block a second pod from using an in-use ReadWriteOncePod volume",
    "volume-expand",
    "volume-modify",
    "volumeLimits should verify that all csinodes have volume limits",
    "volumeMode should fail in binding dynamic provisioned PV to PVC",
    "volumeMode should not mount / map unused volumes in a pod",
)
"""The others write files into a volume, or take a mount that is read-only for a failure."""
LEAST = 20
"""These were so many in Kubernetes 1.37."""
IMAGES = {
    "registry.k8s.io/e2e-test-images/busybox:1.37.0-2": [],
    # Its own command stays until it is ended, whatever it is given.
    "registry.k8s.io/e2e-test-images/agnhost:2.66.1": ["/bin/busybox", "sh", "-c", "sleep 2147483647"],
}
"""Images of the suite with their entry points; busybox has all that these tests call in them."""
WEB_PORT = 8000


def class_file(path: Path, document: dict[str, object]) -> dict[str, str]:
    path.write_text(json.dumps(document))
    return {"FromFile": str(path)}


@pytest.fixture
def definition(hayloft: Installation, tmp_path: Path) -> Iterator[Path]:
    """What the suite is told of the driver."""
    cluster = hayloft.cluster
    define_snapshots(cluster)
    commands = subprocess.run([cluster.programs / "busybox", "--list"], capture_output=True, text=True, check=True)
    links = [name for name in commands.stdout.split() if name != "busybox"]
    for name, command in IMAGES.items():
        write_image(tmp_path / "image.tar", name, cluster.programs / "busybox", command, links)
        cluster.load_image(tmp_path / "image.tar")
    data = tmp_path / "web/data"
    data.mkdir(parents=True)
    for number in range(5):
        (data / f"{number}.bin").write_bytes(bytes(1000))
    # Inline volumes of the suite have no Secret: theirs is a dataset that needs no key.
    server = subprocess.Popen(
        cluster.node.network_command(
            *(sys.executable, "-m", "http.server", str(WEB_PORT), f"--bind={STORE_ADDRESS}"),
            f"--directory={tmp_path / 'web'}",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parameters = hayloft.class_parameters("train")
    capabilities = ("multipods", "capReadOnlyMany", "readWriteOncePod", "multiplePVsSameID", "volumeLimits", "fsGroup")
    expansion = ("controllerExpansion", "nodeExpansion", "onlineExpansion", "offlineExpansion")
    written = {
        "StorageClass": class_file(
            tmp_path / "class.json", hayloft.storage_class("suite", parameters, allowVolumeExpansion=True)
        ),
        "VolumeAttributesClass": class_file(
            tmp_path / "attributes.json",
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "VolumeAttributesClass",
                "metadata": {"name": "suite"},
                "driverName": DRIVER,
                "parameters": {"bandwidth": "10MiB/s"},
            },
        ),
        "InlineVolumes": [
            {"Attributes": {"url": f"http://{STORE_ADDRESS}:{WEB_PORT}/data/"}, "Shared": True, "ReadOnly": True}
        ],
        "DriverInfo": {
            "Name": DRIVER,
            "SupportedSizeRange": {"Min": "1Gi", "Max": "8Gi"},
            "SupportedFsType": {"": {}},
            "RequiredAccessModes": ["ReadOnlyMany"],
            "Capabilities": dict.fromkeys((*capabilities, "volumeMountGroup", *expansion), True),
        },
    }
    path = tmp_path / "driver.yaml"
    path.write_text(yaml.safe_dump(written))
    try:
        yield path
    finally:
        server.kill()
        server.wait()


def test_kubernetes_own_tests_of_storage_pass(hayloft: Installation, definition: Path, tmp_path: Path) -> None:
    cluster, report = hayloft.cluster, tmp_path / "report.json"
    command = cluster.node.network_command(
        str(TOOLS / "bin/e2e.test"),
        *(f"--kubeconfig={cluster.kubeconfig}", "--provider=local", f"--kubectl-path={cluster.programs / 'kubectl'}"),
        *(f"--storage.testdriver={definition}", "--allowed-not-ready-nodes=-1"),
        f"--ginkgo.focus=External.Storage.*({'|'.join(SELECTED)})",
        *(r"--ginkgo.skip=\[Disruptive\]|\[Serial\]", "--ginkgo.timeout=25m", f"--ginkgo.json-report={report}"),
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    assert report.exists(), (tmp_path / "log").read_text()[-5000:]
    specs = [
        spec
        for suite in json.loads(report.read_text())
        for spec in suite["SpecReports"]
        if spec["LeafNodeType"] == "It" and DRIVER in " ".join(spec["ContainerHierarchyTexts"])
    ]
    run = [spec for spec in specs if spec["NumAttempts"]]
    not_passed = [
        f"{' '.join(spec['ContainerHierarchyTexts'])} {spec['LeafNodeText']}: {spec['State']}: "
        f"{spec.get('Failure', {}).get('Message')}"
        for spec in run
        if spec["State"] != "passed"
    ]
    assert not_passed == []
    assert len(run) >= LEAST
    hayloft.wait_until_clean()
