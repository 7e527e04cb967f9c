"""Hayloft in the cluster, installed with Helm as a user does, and what tests do with it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import yaml

from hayloft_lab.cluster.cluster import Cluster
from hayloft_lab.cluster.images import write_image
from hayloft_lab.cluster.kubectl import CommandFailed, Kubectl, Object
from hayloft_lab.cluster.node import NODE_NAME, STORE_ADDRESS
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.architecture.kubernetes_files import CHART
from tests.architecture.source_tree import REPOSITORY
from tests.cluster.datasets import BUCKET, CHECK_ONCE, READ_ALWAYS

TOOLS = REPOSITORY / os.environ.get("HAYLOFT_CLUSTER_TOOLS", ".tools")
"""What ``.ci/cluster`` makes; ``make e2e KUBELET=older`` names the directory with an older kubelet."""
NAMESPACE = "hayloft"
DRIVER = "csi.hayloft.dev"
SECRET = "store"
"""In the namespace default: the keys of the store."""

PROGRAMS_OF_SIDECARS = {
    "provisioner": "csi-provisioner",
    "snapshotter": "csi-snapshotter",
    "resizer": "csi-resizer",
    # Neither is published as a Go module.
    "registrar": "node-helper",
    "livenessProbe": "node-helper",
}
"""Values of the chart below ``sidecars``, and what their images consist of."""


def chart_values() -> dict[str, Any]:
    """The chart's defaults."""
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def hayloft_image() -> str:
    """Name of the image that the chart starts."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    return f"{chart_values()['image']['repository']}:{version}"


def python(script: str, *arguments: str) -> list[str]:
    """The command of a container of Hayloft's image."""
    return ["/opt/hayloft/bin/python", "-c", script, *arguments]


CHECK = python(CHECK_ONCE, "/data")
READ = python(READ_ALWAYS, "/data")


def load_images(cluster: Cluster) -> None:
    """Hayloft's image and those of the sidecars, under the names that the chart gives them."""
    cluster.load_image(cluster.tools / "images/hayloft.tar")
    for sidecar, name in chart_values()["sidecars"].items():
        if not name:
            continue
        program = cluster.programs / PROGRAMS_OF_SIDECARS[sidecar]
        archive = cluster.files / f"{sidecar}.tar"
        write_image(archive, name, program, [f"/bin/{program.name}"])
        cluster.load_image(archive)


def define_snapshots(cluster: Cluster) -> None:
    """The kinds of ``snapshot.storage.k8s.io`` and of groups, which are no part of Kubernetes."""
    for path in sorted((cluster.tools / "snapshot-crds").glob("*.yaml")):
        cluster.kubectl.apply(yaml.safe_load(path.read_text()))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


def pod(
    name: str,
    volume: dict[str, Any],
    command: list[str] = CHECK,
    *,
    container: dict[str, Any] | None = None,
    mount: dict[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A pod with one volume at /data. ``container``, ``mount`` and ``spec`` are further fields of these."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": hayloft_image(),
                    "command": command,
                    "volumeMounts": [{"name": "data", "mountPath": "/data", **(mount or {})}],
                    **(container or {}),
                }
            ],
            "volumes": [{"name": "data", **volume}],
            **spec,
        },
    }


def of_claim(claim: str, *, read_only: bool = True) -> dict[str, Any]:
    """The volume of a claim."""
    return {"persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}


def inline(attributes: dict[str, str], secret: str | None = SECRET) -> dict[str, Any]:
    """A volume that the pod describes itself."""
    reference = {"nodePublishSecretRef": {"name": secret}} if secret else {}
    return {"csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes, **reference}}


def claim(name: str, storage_class: str, mode: str = "ReadOnlyMany", **spec: Any) -> Object:
    """A claim of 1 GiB. ``spec`` are further fields of it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "storageClassName": storage_class,
            "accessModes": [mode],
            "resources": {"requests": {"storage": "1Gi"}},
            **spec,
        },
    }


@dataclass
class Installation:
    """One release, of which ``values`` are changed by upgrades."""

    cluster: Cluster
    store: SeaweedFsServer
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def kubectl(self) -> Kubectl:
        return self.cluster.kubectl

    def parameters(self, prefix: str, *, bucket: str = BUCKET, **further: str) -> dict[str, str]:
        """Parameters of a dataset in the store, without credentials."""
        place = {"endpoint": self.store.endpoint, "region": "us-east-1", "addressingStyle": "path"}
        return {"url": f"s3://{bucket}/{prefix}", **place, **further}

    def class_parameters(self, prefix: str, *, bucket: str = BUCKET, **further: str) -> dict[str, str]:
        """Those of a StorageClass, with the Secret of the tests."""
        secret = {
            f"csi.storage.k8s.io/{purpose}-secret-{part}": value
            for purpose in ("provisioner", "node-stage", "node-publish")
            for part, value in (("name", SECRET), ("namespace", "default"))
        }
        return {**self.parameters(prefix, bucket=bucket, **further), **secret}

    def storage_class(self, name: str, parameters: dict[str, str], **fields: Any) -> Object:
        return {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "parameters": parameters,
            **fields,
        }

    def install(self) -> str:
        """What ``helm install`` prints."""
        self.values = {
            "nodes": {"all": True},
            # The disk is shared with all else on this machine.
            "settings": {"HAYLOFT_FREE_FLOOR": "64MiB"},
            "cache": {"limit": "2GiB"},
            "policy": {"allowedAddresses": [STORE_ADDRESS]},
            "storageClasses": [{"name": "train", "parameters": self.class_parameters("train")}],
        }
        keys = {"access_key_id": self.store.access_key_id, "secret_access_key": self.store.secret_access_key}
        self.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": "default"},
                "stringData": keys,
            }
        )
        return self.kubectl.helm(
            *("install", "hayloft", str(CHART), f"--namespace={NAMESPACE}", "--create-namespace"),
            *("--wait", "--timeout=4m"),
            values=self.values,
        )

    def upgrade(self, **values: Any) -> str:
        """``helm upgrade`` with changed values, until all pods are new."""
        self.values = {**self.values, **values}
        printed = self.kubectl.helm(
            *("upgrade", "hayloft", str(CHART), f"--namespace={NAMESPACE}", "--wait", "--timeout=4m"),
            values=self.values,
        )
        self.wait_for_rollout()
        return printed

    def wait_for_rollout(self) -> None:
        # Not the keeper: its pods are replaced by hand.
        for name in ("daemonset/hayloft-node", "deployment/hayloft-controller"):
            self.kubectl("rollout", "status", name, f"--namespace={NAMESPACE}", "--timeout=120s")
        # An old pod beside the new one is ended only when that one has been ready for a while.
        self.kubectl.wait_for(lambda: len(self._pods("node")) == 1, "the old node pod has ended")
        self.kubectl.wait_for(self.is_registered, "kubelet knows the driver", 60)

    def is_registered(self) -> bool:
        """Whether kubelet knows the driver."""
        # Kubernetes 1.37 tries again only after five minutes to schedule a pod that came before the driver.
        csinode = self.kubectl.get("csinode", NODE_NAME) or {"spec": {}}
        return DRIVER in [one["name"] for one in csinode["spec"].get("drivers") or ()]

    def pod_name(self, component: str) -> str:
        """Of ``controller``, ``node`` or ``keeper``: the pod that is not being deleted."""
        (name,) = (
            one["metadata"]["name"] for one in self._pods(component) if "deletionTimestamp" not in one["metadata"]
        )
        return str(name)

    def _pods(self, component: str) -> list[Object]:
        return self.kubectl.objects("pods", NAMESPACE, f"app.kubernetes.io/component={component}")

    def restarts(self, pod: str) -> int:
        """How often kubelet has started a container of the pod again."""
        found = self.kubectl.get("pod", pod, NAMESPACE)
        assert found is not None, pod
        return sum(one["restartCount"] for one in found["status"]["containerStatuses"])

    def check(self, one: Object, expected: dict[str, int], timeout_s: float = 60) -> None:
        """Runs a pod with ``CHECK`` to its end: it has read every file."""
        name = str(one["metadata"]["name"])
        self.kubectl.apply(one)
        self.kubectl.wait_for_pod(name, "Succeeded", timeout_s=timeout_s)
        said = self.kubectl("logs", name)
        assert said == f"read {len(expected)} files, {sum(expected.values())} bytes\n"

    def volumes_of(self, claim: str) -> list[str]:
        """Names of the volumes that a claim has had, as far as they are not deleted."""
        listed = self.kubectl.objects("pv")
        return [one["metadata"]["name"] for one in listed if one["spec"]["claimRef"]["name"] == claim]

    def warnings(self, name: str) -> list[tuple[str, str, int]]:
        """Events of type Warning of the objects of a name."""
        listed = [one for one in self.kubectl.objects("events") if one["involvedObject"].get("name") == name]
        return [
            (one["reason"], one["message"], int(one.get("count") or 1)) for one in listed if one["type"] == "Warning"
        ]

    def warning(self, name: str, reason: str, timeout_s: float = 60) -> str:
        """The text of the last event of this reason, once there is one."""
        found = self.kubectl.wait_for(
            lambda: [text for why, text, _ in self.warnings(name) if why == reason],
            f"an event {reason} of {name}",
            timeout_s,
            lambda: self.kubectl("get", "events"),
        )
        return str(found[-1])

    def described_warning(self, kind: str, name: str, reason: str, timeout_s: float = 60) -> str:
        """The same, after a look that ``kubectl describe`` shows it."""
        said = self.warning(name, reason, timeout_s)
        described = self.kubectl("describe", kind, name)
        # describe breaks no lines, and shows white space as it is.
        assert reason in described, described
        assert said in described, described
        return said

    # -- What is on the node -------------------------------------------------------------------------------------------

    def mounts(self) -> list[str]:
        """Places where the node has mounts of Hayloft."""
        lines = self.cluster.node.run("cat", "/proc/1/mountinfo").splitlines()
        return sorted(line.split()[4] for line in lines if " fuse.hayloft " in line or "/hayloft-view-" in line)

    def directories(self) -> list[str]:
        """Directories of volumes that kubelet or the driver has made for pods."""
        places = [
            "/var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/*",
            f"/var/lib/kubelet/plugins/kubernetes.io/csi/{DRIVER}/*",
            f"/var/lib/kubelet/plugins/{DRIVER}/inline/*",
            "/var/lib/hayloft/state/mounts/*",
        ]
        script = f"for path in {' '.join(places)}; do [ ! -e $path ] || echo $path; done"
        return self.cluster.node.run("sh", "-c", script).split()

    def left_over(self) -> list[str]:
        """Mounts and directories of volumes on the node."""
        return self.mounts() + self.directories()

    def wait_until_clean(self) -> None:
        """Until no volume is on the node any more."""
        self.kubectl.wait_for(
            lambda: not self.left_over(), "no volume is left", 60, lambda: "\n".join(self.left_over())
        )

    def process(self, command: str) -> int:
        """The process of ``hayloft COMMAND``, by its number on the node."""
        for path in (self.cluster.node.root / "proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"/hayloft") for word in words[:2]) and command.encode() in words[1:3]:
                return int(path.parent.name)
        raise AssertionError(f"no process hayloft {command}")

    def descriptors(self, command: str) -> int:
        """Open descriptors of the process of ``hayloft COMMAND``."""
        return len(self.cluster.node.run("ls", f"/proc/{self.process(command)}/fd").split())


@dataclass
class Reader:
    """A pod that reads without an end."""

    installation: Installation
    name: str

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.installation.kubectl("logs", self.name).splitlines()]

    def count(self) -> int:
        """Files read so far."""
        counts = [int(words[2]) for words in self.lines() if words[0] == "checked"]
        return counts[-1] if counts else 0

    def goes_on(self) -> None:
        """Waits until it has read more. Its log cannot be read while kubelet starts."""
        seen: list[int] = []

        def reads_on() -> bool:
            with contextlib.suppress(CommandFailed):
                seen.append(self.count())
            return bool(seen) and seen[-1] > seen[0] + 10

        self.installation.kubectl.wait_for(reads_on, f"{self.name} reads on", 120)

    def longest_stall_s(self, since: float) -> float:
        """The longest wait for a file that ended after a time (of ``time.time``)."""
        stalls = [(float(words[1]), float(words[2])) for words in self.lines() if words[0] == "stall"]
        return max((length for begun, length in stalls if begun + length >= since), default=0.0)

    def assert_faultless(self) -> None:
        """No error and no wrong byte until now."""
        faults = [words for words in self.lines() if words[0] not in ("reading", "checked", "stall")]
        assert faults == [], faults[:10]


def start_reader(installation: Installation, name: str, volume: dict[str, Any]) -> Reader:
    """Starts a reader and waits until it reads."""
    installation.kubectl.apply(pod(name, volume, READ))
    installation.kubectl.wait_for_pod(name)
    reader = Reader(installation, name)
    reader.goes_on()
    return reader
