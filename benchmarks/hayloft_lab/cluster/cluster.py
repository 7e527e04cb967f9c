"""Kubernetes on one node: ``with Cluster(tools) as cluster``."""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hayloft_lab.cluster import configuration
from hayloft_lab.cluster.images import write_image
from hayloft_lab.cluster.kubectl import CommandFailed, Kubectl
from hayloft_lab.cluster.node import NODE_ADDRESS, NODE_NAME, SERVICE_ADDRESS, Node

BUSYBOX_IMAGE = "localhost/hayloft-lab/busybox:1"
"""Sandbox of all pods, and for pods of tests. Its shell has the usual commands."""
_BUSYBOX_COMMANDS = ("sh", "cat", "ls", "sleep", "sha256sum", "dd", "id", "touch", "stat", "find", "wc", "true", "test")

START_TIMEOUT_S = 120.0
"""Measured 5 to 20 s for each program on two busy cores."""


class Cluster:
    """Starts with ``__enter__``, which blocks for up to a minute or two and raises ClusterFailed. Needs root."""

    def __init__(
        self, tools: Path, *, feature_gates: Mapping[str, bool] | None = None, control_plane_only: bool = False
    ) -> None:
        """``tools`` is the directory that ``.ci/cluster`` fills (``.tools``). ``feature_gates`` are those of API
        server, controller-manager, scheduler and kubelet. ``control_plane_only``: the API server alone, which validates
        objects."""
        self.tools = tools
        self.programs = tools / "bin"
        self.feature_gates = dict(feature_gates or {})
        self._control_plane_only = control_plane_only
        self.node = Node(self.programs)
        self._stack = contextlib.ExitStack()

    @property
    def files(self) -> Path:
        """Configuration files, and those of the API server."""
        return self.node.directory / "kubernetes"

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator."""
        return self.files / "admin.json"

    @property
    def kubectl(self) -> Kubectl:
        """kubectl and Helm of an administrator."""
        return Kubectl(self.node, self.programs, self.kubeconfig)

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.node)
            self.files.mkdir(mode=0o700)
            stack.callback(self._stop)
            self._write_identities()
            self._start_control_plane()
            if not self._control_plane_only:
                self._start_node()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _write_identities(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.files / "accounts.key").write_bytes(private)
        (self.files / "accounts.pub").write_bytes(public)
        identities = {
            "admin": ("admin", "system:masters"),
            "kubelet-identity": (f"system:node:{NODE_NAME}", "system:nodes"),
            "controller-manager": ("system:kube-controller-manager", "system:masters"),
            "scheduler": ("system:kube-scheduler", ""),
        }
        lines = []
        for name, (user, group) in identities.items():
            token = secrets.token_hex(16)
            lines.append(f"{token},{user},{name}{f',{group}' if group else ''}\n")
            text = configuration.kubeconfig(
                f"https://{SERVICE_ADDRESS}", str(self.files / "certificates/apiserver.crt"), token
            )
            (self.files / f"{name}.json").write_text(text)
        (self.files / "tokens.csv").write_text("".join(lines))

    def _gates(self) -> list[str]:
        if not self.feature_gates:
            return []
        return ["--feature-gates=" + ",".join(f"{name}={str(on).lower()}" for name, on in self.feature_gates.items())]

    def _start_control_plane(self) -> None:
        files, node = self.files, self.node
        node.start(
            "etcd",
            f"--data-dir={node.directory / 'etcd'}",
            *("--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"),
            *("--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"),
        )
        node.start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            # Pods reach it at the address and port of its Service, without a proxy.
            *("--bind-address=0.0.0.0", "--secure-port=443", f"--advertise-address={NODE_ADDRESS}"),
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--cert-dir={files / 'certificates'}",
            f"--token-auth-file={files / 'tokens.csv'}",
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={files / 'accounts.pub'}",
            f"--service-account-signing-key-file={files / 'accounts.key'}",
            *self._gates(),
        )
        node.wait_for(
            lambda: (files / "certificates/apiserver.crt").exists(),
            "kube-apiserver",
            START_TIMEOUT_S,
            "kube-apiserver",
        )
        if not self._control_plane_only:
            self._start_controller_manager()
        node.wait_for(self._answers, "kube-apiserver", START_TIMEOUT_S, "kube-apiserver")

    def _start_controller_manager(self) -> None:
        files = self.files
        self.node.start(
            "kube-controller-manager",
            f"--kubeconfig={files / 'controller-manager.json'}",
            f"--service-account-private-key-file={files / 'accounts.key'}",
            f"--root-ca-file={files / 'certificates/apiserver.crt'}",
            *("--leader-elect=false", "--use-service-account-credentials=true"),
            *self._gates(),
        )

    def _answers(self) -> bool:
        try:
            return self.kubectl("get", "--raw=/readyz") == "ok"
        except CommandFailed:
            return False

    def _start_node(self) -> None:
        node, files = self.node, self.files
        node.start("kube-scheduler", f"--kubeconfig={files / 'scheduler.json'}", "--leader-elect=false", *self._gates())
        network = node.directory / "lib/cni/net.d"
        network.mkdir(parents=True)
        (network / "pods.conflist").write_text(configuration.pod_network())
        (files / "containerd.toml").write_text(configuration.containerd(BUSYBOX_IMAGE, str(self.programs / "runc")))
        (files / "kubelet.json").write_text(configuration.kubelet(node.cgroup, self.feature_gates))
        self.start_containerd()
        archive = files / "busybox.tar"
        commands = ["/bin/busybox", "sleep", "2147483647"]
        write_image(archive, BUSYBOX_IMAGE, self.programs / "busybox", commands, _BUSYBOX_COMMANDS)
        self.load_image(archive)
        self.start_kubelet()
        node.wait_for(self._node_is_ready, "the node is Ready", START_TIMEOUT_S, "kubelet")
        node.wait_for(
            lambda: self.kubectl.get("serviceaccount", "default") is not None,
            "the account of pods",
            START_TIMEOUT_S,
            "kube-controller-manager",
        )

    def _node_is_ready(self) -> bool:
        found = self.kubectl.get("node", NODE_NAME)
        conditions = found["status"].get("conditions", []) if found else []
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def start_containerd(self) -> None:
        """Also after ``node.stop("containerd")``: its containers have gone on."""
        self.node.start("containerd", f"--config={self.files / 'containerd.toml'}")
        self.node.wait_for(
            lambda: self.node.run("ctr", "version", check=False).count("Version:") == 2,
            "containerd",
            START_TIMEOUT_S,
            "containerd",
        )

    def start_kubelet(self) -> None:
        """Also after ``node.stop("kubelet")``."""
        self.node.start(
            "kubelet",
            f"--config={self.files / 'kubelet.json'}",
            f"--kubeconfig={self.files / 'kubelet-identity.json'}",
            *(f"--hostname-override={NODE_NAME}", f"--node-ip={NODE_ADDRESS}"),
            # Says when a volume is mounted.
            "--v=2",
        )

    def load_image(self, archive: Path) -> None:
        """Makes the images of an archive, with their names, known to the node."""
        self.node.run("ctr", "--namespace=k8s.io", "images", "import", str(archive), timeout_s=300)

    def container(self, pod: str, name: str, namespace: str) -> str:
        """The id of a pod's running container."""
        found = self.kubectl.get("pod", pod, namespace)
        statuses = found["status"].get("containerStatuses", []) if found else []
        return next(str(one["containerID"]).partition("://")[2] for one in statuses if one["name"] == name)

    def kill_container(self, pod: str, name: str, namespace: str) -> None:
        """Ends the first process of a container with SIGKILL."""
        container = self.container(pod, name, namespace)
        self.node.run("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)

    def kill_child(self, pod: str, name: str, namespace: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the first child of a container's first process: a supervised daemon."""
        container = self.container(pod, name, namespace)
        listed = self.node.run("ctr", "--namespace=k8s.io", "tasks", "ps", container)
        processes = {line.split()[0] for line in listed.splitlines()[1:]}
        first = next(one for one in processes if self._parent_of(one) not in processes)
        children = sorted((one for one in processes if self._parent_of(one) == first), key=int)
        self.node.run("kill", f"-{int(number)}", children[0])

    def _parent_of(self, process: str) -> str:
        return self.node.run("cat", f"/proc/{process}/stat").rpartition(")")[2].split()[1]

    def _stop(self) -> None:
        """The order matters to no one: the namespaces end with everything in them. But a kubelet that is stopped first
        does not report the end of the others."""
        for name in ("kubelet", "kube-controller-manager", "kube-scheduler"):
            self.node.stop(name)
