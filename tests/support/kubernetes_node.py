"""An emulated node: starts the containers of the Kubernetes files as a container runtime does.

The host is a mount namespace in which /var/lib is a directory of the test. Each container is a mount namespace below
it, with its root, its volumes and their propagation, and where the files request it a read-only root file system and
no capabilities, and the user that the files or else the image name. cgroups, networks and process namespaces are not
emulated. All mounts end with the processes and are not visible outside.

The root of a container is that of this machine, with this repository in it, or with ``HAYLOFT_IMAGE_ROOT=DIRECTORY``
the file system of the image (``.ci/image``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.architecture.kubernetes_files import Container, Document, pod_spec
from tests.architecture.source_tree import REPOSITORY
from tests.support.all_in_one import until

_HOST = """
# Mounts of other tests must not stay busy in this namespace after these tests unmount them.
findmnt --raw --noheadings --output TARGET --types fuse.hayloft | while read -r point; do
    umount --lazy "$point" || true
done
mount --bind {lib} /var/lib
mount --bind /var/lib/kubelet /var/lib/kubelet
mount --make-shared /var/lib/kubelet
echo ready
exec cat
"""

_ROOT = """
mount -t tmpfs none {root}
for directory in /*; do
    case $directory in /var) continue ;; esac
    [ -d "$directory" ] && [ ! -L "$directory" ] && mkdir {root}$directory && mount --rbind $directory {root}$directory
    [ -L "$directory" ] && cp -P $directory {root}$directory
done
mkdir -p {root}/var/lib {root}/var/tmp
"""

_IMAGE_ROOT = """
mount -t tmpfs none {root}
mkdir {root}/upper {root}/work {root}/root
mount -t overlay none -o lowerdir={image},upperdir={root}/upper,workdir={root}/work {root}/root
mount --move {root}/root {root}
for directory in dev proc sys; do mount --rbind /$directory {root}/$directory; done
"""

_READ_ONLY = """
for directory in {root}/*; do
    case $directory in */proc|*/sys|*/dev) continue ;; esac
    mountpoint -q $directory && ! grep -qx $directory {volumes} && mount -o remount,bind,ro $directory
done
mount -o remount,ro {root}
"""

_NO_CAPABILITIES = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
_IMAGE_PATH = "/opt/hayloft/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image_root() -> Path | None:
    """The file system of the image, if the tests are to run in it."""
    directory = os.environ.get("HAYLOFT_IMAGE_ROOT")
    return Path(directory) if directory else None


def image_user() -> int:
    """The user of a container whose files name none."""
    found = re.findall(r"^USER (\d+):\d+$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    return int(found[-1])


@dataclass(frozen=True)
class Background:
    """A script that runs until ``finish``."""

    process: subprocess.Popen[str]
    end: Path

    def finish(self) -> str:
        """Returns its output; fails if the script did."""
        self.end.touch()
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out
        return out


class KubernetesNode:
    """``close`` ends all processes and mounts."""

    def __init__(self) -> None:
        # A short path: the sockets of the containers are reached through it.
        self.home = Path(tempfile.mkdtemp(prefix="hl-", dir="/var/tmp"))
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for directory in ("lib/kubelet/plugins", "lib/kubelet/plugins_registry", "lib/kubelet/pods", "roots", "empty"):
            (self.home / directory).mkdir(parents=True)
        script = _HOST.format(lib=self.home / "lib")
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        self._host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._host.stdout is not None
        assert self._host.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """Kills the containers and the host, and with them their mounts."""
        for name in list(self.running):
            self.kill(name)
        with self._host:
            self._host.kill()
        shutil.rmtree(self.home)

    def start(self, container: Container, config: dict[str, str], pod: str = "") -> None:
        """Starts a container under its name, ``config`` being its ConfigMap. ``pod`` is appended to the name, for a
        second pod of the same kind."""
        name = f"{container.document.name}-{container.name}{pod}"
        # The disk is that of this kubelet, and may be fuller than the cache leaves it by itself.
        variables = {**config, "HAYLOFT_FREE_FLOOR": "64MiB", **_variables(container)}
        arguments = [_expanded(str(argument), variables) for argument in container.body["args"]]
        # Two pods have one port number each, and here one network.
        arguments = [argument for argument in arguments if not argument.startswith("--health-port=")]
        if image_root() is None:
            program = [sys.executable, "-m", "csi_driver.cli"]
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.fspath(REPOSITORY), **variables}
        else:
            program, environment = ["hayloft"], {"PATH": _IMAGE_PATH, "PYTHONUNBUFFERED": "1", **variables}
        script = self._script(name, container, [*program, *arguments])
        command = [*self._enter(), "unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", script]
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """With SIGKILL, and then what it has started, as a container runtime does when a first process dies."""
        with self.running.pop(name) as process:
            others = descendants(process.pid)
            process.kill()
        for other in others:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{other}").exists() for other in others), "all of the container has ended")

    def stop(self, name: str) -> subprocess.Popen[bytes]:
        """With SIGTERM, as kubelet does when a pod is deleted. Does not wait."""
        process = self.running.pop(name)
        process.terminate()
        return process

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def on_the_host(self, *command: str) -> str:
        """The output of a command in the host's mount namespace."""
        return subprocess.run([*self._enter(), *command], capture_output=True, text=True, check=True, timeout=60).stdout

    def in_the_background(self, script: str, **values: str) -> Background:
        """Starts a shell script in the host's mount namespace. It ends when the file ``{end}`` appears."""
        end = self.home / "end"
        text = script.format(end=end, **values)
        return Background(
            subprocess.Popen([*self._enter(), "bash", "-c", text], stdout=subprocess.PIPE, text=True), end
        )

    def outside(self, path: str) -> Path:
        """The path outside of the host's mount namespace: its files are visible there, its mounts are not."""
        return self.home / Path(path).relative_to("/var")

    def socket(self, container: Container, path: str) -> Path:
        """The path of a container's socket outside of the host's mount namespace."""
        place = container.on_the_host(path)
        if place.startswith("/"):
            return self.outside(place)
        return self._empty(container.document, Path(place).parent.name) / Path(place).name

    def empty_directories(self, container: Container) -> list[Path]:
        """The directories that are the emptyDir volumes of the container's pod."""
        volumes = pod_spec(container.document)["volumes"]
        return [self._empty(container.document, volume["name"]) for volume in volumes if "emptyDir" in volume]

    def _enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._host.pid}/ns/mnt", "--"]

    def _empty(self, document: Document, volume: str) -> Path:
        path = self.home / "empty" / f"{document.name}-{volume}"
        path.mkdir(exist_ok=True)
        return path

    def _script(self, name: str, container: Container, command: list[str]) -> str:
        root = self.home / "roots" / name
        root.mkdir(exist_ok=True)
        security: dict[str, Any] = container.body["securityContext"]
        image = image_root()
        lines = [_IMAGE_ROOT.format(root=root, image=image) if image else _ROOT.format(root=root)]
        places = []
        for mount in container.body["volumeMounts"]:
            place = f"{root}{mount['mountPath']}"
            places.append(place)
            lines.append(self._volume(container.document, mount, place))
        # Outside of an image, a volume such as /tmp must not hide the program under test.
        for path in () if image else (REPOSITORY, Path(sys.prefix)):
            lines.append(f"[ -e {root}{path} ] || {{ mkdir -p {root}{path}; mount --rbind {path} {root}{path}; }}")
        if security.get("readOnlyRootFilesystem"):
            listed = self.home / f"{name}.volumes"
            listed.write_text("\n".join(places) + "\n")
            lines.append(_READ_ONLY.format(root=root, volumes=listed))
        rights = list(_NO_CAPABILITIES) if security.get("capabilities") == {"drop": ["ALL"]} else []
        assert rights or security.get("privileged")
        if user := security.get("runAsUser", image_user()):
            rights += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        lines.append(f"exec chroot {root} {shlex.join(['setpriv', *rights, '--', *command] if rights else command)}")
        return "\n".join(lines)

    def _volume(self, document: Document, mount: dict[str, Any], place: str) -> str:
        volume = next(one for one in pod_spec(document)["volumes"] if one["name"] == mount["name"])
        if "emptyDir" in volume or "projected" in volume:  # of the latter no API server is there
            source, kind = os.fspath(self._empty(document, volume["name"])), "Directory"
        else:
            source, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
        made = f"mkdir -p {source}\n" if kind == "DirectoryOrCreate" else ""
        if kind == "CharDevice":
            return f"test -c {source}\nmount --bind {source} {place}"
        private = "" if mount.get("mountPropagation") == "Bidirectional" else f"\nmount --make-rprivate {place}"
        return f"{made}test -d {source}\nmkdir -p {place}\nmount --rbind {source} {place}{private}"


def descendants(process_id: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def _variables(container: Container) -> dict[str, str]:
    """A variable from a field of the pod has the name of the field as its value. The pods have no labels of nodes."""
    found = {}
    for one in container.body.get("env", []):
        path = one["valueFrom"]["fieldRef"]["fieldPath"] if "valueFrom" in one else ""
        found[one["name"]] = one["value"] if not path else "" if path.startswith("metadata.labels[") else path
    return found


def _expanded(argument: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument)
