"""The machine that the cluster's node is: namespaces with a file system, a network and processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from hayloft_lab.child_servers import dying_with_parent

NODE_ADDRESS = "10.77.0.1"
"""Of the node. Like the other addresses, it exists in the node's network namespace alone."""
SERVICE_ADDRESS = "10.96.0.1"
"""Of the API server for pods. The node itself has it, so that no kube-proxy is needed."""
STORE_ADDRESS = "10.78.0.1"
"""Of an object store beside the cluster: the driver lets inline volumes reach no service of the node's own address."""
NODE_NAME = "node1"

DIRECTORIES = Path("/var/tmp")  # noqa: S108  # each node makes one of its own there
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "hayloft-cluster-"

_CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


class ClusterFailed(Exception):
    """A part of the cluster did not start; the text ends with the end of its log."""


class Node:
    """``with Node(programs) as node``. At the end, also of the thread that entered it, every process and mount of the
    node ends with its namespaces. ``directory`` has its disk, and is deleted.

    Not safe for threads, but for ``run`` and ``in_the_network``.
    """

    def __init__(self, programs: Path) -> None:
        """``programs`` is the directory in which ``start`` finds them. Needs root."""
        # Short: sockets lie below it.
        self.directory = DIRECTORIES / f"hayc-{secrets.token_hex(3)}"
        self.cgroup = f"/{CGROUP_PREFIX}{self.directory.name}"
        self._programs = programs
        self._init: subprocess.Popen[str] | None = None
        self._pid = 0
        self._running: dict[str, int] = {}
        self._network: ThreadPoolExecutor | None = None
        self._lock: int | None = None

    def __enter__(self) -> Node:
        _remove_left_directories()
        self.directory.mkdir(mode=0o711)
        self._lock = _locked(self.directory)
        (self.directory / "logs").mkdir()
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{NODE_ADDRESS} {NODE_NAME}\n")
        try:
            _make_cgroups(self.cgroup)
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _begin(self) -> None:
        init = Path(__file__).with_name("node_init.py")
        # The kernel kills unshare with this thread, and its child, the first process of the namespaces, with unshare.
        command = [
            *(str(shutil.which("unshare")), "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"),
            *("--kill-child=SIGKILL", "--", sys.executable, "-I", str(init)),
            *(str(self.directory), NODE_NAME, NODE_ADDRESS, SERVICE_ADDRESS, STORE_ADDRESS),
        ]
        with self.log("init").open("wb") as log:
            self._init = subprocess.Popen(
                dying_with_parent(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.wait_for(lambda: (self.directory / "ready").exists(), "the namespaces of the node", 10, "init")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self._pid = int(children[0])
        self._network = ThreadPoolExecutor(1, "node-network", self._enter_network)

    def _enter_network(self) -> None:
        descriptor = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._network is not None:
            self._network.shutdown()
        if self._init is not None:
            # The kernel kills all processes of the namespace before its first one has ended.
            self._init.kill()
            self._init.communicate()
            self.wait_for(lambda: not Path(f"/proc/{self._pid}/ns").exists(), "the end of the node's processes", 60)
        _remove_cgroups(self.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    @property
    def root(self) -> Path:
        """The node's root directory as this process can open it, with its mounts: ``root / "run/x.sock"``."""
        return Path(f"/proc/{self._pid}/root")

    def log(self, name: str) -> Path:
        """Output of a program that was started under this name."""
        return self.directory / "logs" / f"{name}.log"

    def _ask(self, **request: Any) -> dict[str, Any]:
        init = self._init
        assert init is not None
        assert init.stdin is not None
        assert init.stdout is not None
        init.stdin.write(json.dumps(request) + "\n")
        init.stdin.flush()
        answer: dict[str, Any] = json.loads(init.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise ClusterFailed(f"first process of the node: {answer['error']}")
        return answer

    def start(self, name: str, *arguments: str, **environment: str) -> None:
        """Starts the program of this name as a service of the node. Raises ClusterFailed."""
        path = f"{self._programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        answer = self._ask(
            do="start",
            argv=[str(self._programs / name), *arguments],
            env={"PATH": path, "HOME": "/root", **environment},
            log=str(self.log(name)),
        )
        self._running[name] = answer["pid"]

    def is_running(self, name: str) -> bool:
        """Whether a service that was started has not ended."""
        return name in self._running and self._ask(do="status", pid=self._running[name])["code"] is None

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Sends a signal to a service and waits for its end; after 30 s it is killed. Harmless if it is not running."""
        if not self.is_running(name):
            return
        self._ask(do="signal", pid=self._running[name], number=int(number))
        try:
            self.wait_for(lambda: not self.is_running(name), f"the end of {name}", 30)
        except ClusterFailed:
            self._ask(do="signal", pid=self._running[name], number=int(signal.SIGKILL))
            self.wait_for(lambda: not self.is_running(name), f"the end of {name}", 30, name)
        del self._running[name]

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """The output of a command in all namespaces of the node. Raises subprocess.CalledProcessError."""
        entered = ["nsenter", f"--target={self._pid}", "--mount", "--net", "--uts", "--ipc", "--pid", "--", *command]
        result = subprocess.run(
            entered, capture_output=True, text=True, check=False, timeout=timeout_s, env=self._environment()
        )
        if check and result.returncode:
            raise subprocess.CalledProcessError(result.returncode, command, result.stdout, result.stderr)
        return result.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self._programs}:{os.environ['PATH']}"}

    def network_command(self, *command: str) -> list[str]:
        """The same command in the node's network, and otherwise as it is here: it finds the files of this machine."""
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--", *command]

    def in_the_network(self, function: Callable[[], Result]) -> Result:
        """Calls a function in a thread that is in the node's network; processes that it starts are there, too, and live
        no longer than the node. One at a time."""
        assert self._network is not None
        return self._network.submit(function).result()

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float, log: str | None = None) -> None:
        """Polls until ``condition``. Raises ClusterFailed, with the end of a log."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = log in self._running and not self.is_running(str(log))
            if ended or time.monotonic() > deadline:
                why = "it has ended" if ended else f"timed out after {timeout_s:.0f} s"
                raise ClusterFailed(f"{what}: {why}{self._end_of(log)}")
            time.sleep(0.05)

    def _end_of(self, name: str | None) -> str:
        if name is None or not self.log(name).exists():
            return ""
        return f"; the end of {self.log(name).name}:\n" + "\n".join(self.log(name).read_text().splitlines()[-15:])


def _locked(directory: Path) -> int | None:
    """A descriptor of a directory that nothing else holds, or None. The kernel gives it up with this process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left_directories() -> None:
    """Those of test runs that were killed."""
    for directory in DIRECTORIES.glob("hayc-*"):
        with contextlib.suppress(FileNotFoundError):
            if (lock := _locked(directory)) is not None:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)


def _hierarchies() -> Iterator[Path]:
    """Roots of the cgroup file systems: one for each controller with version 1, else one."""
    if (CGROUPS / "cgroup.controllers").exists():
        yield CGROUPS
    else:
        yield from (path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())


def _make_cgroups(name: str) -> None:
    """Makes the parent of the pods' cgroups. Removes those that killed runs have left: they are empty."""
    for root in _hierarchies():
        for left in root.glob(f"{CGROUP_PREFIX}*"):
            _remove_tree(left)
        (root / name.strip("/")).mkdir()


def _remove_cgroups(name: str) -> None:
    for root in _hierarchies():
        _remove_tree(root / name.strip("/"))


def _remove_tree(path: Path) -> None:
    """A cgroup and those below it, as far as they have no process."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
