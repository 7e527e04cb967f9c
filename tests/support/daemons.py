"""Cache daemons and keepers as child processes, and datasets in a real store."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import obstore
from obstore.store import S3Store

from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.fuse import mounting
from csi_driver.model.errors import DaemonUnavailable, MountError
from csi_driver.volumes.data_plane import MountRequest
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.forked_command import ForkedCommand

START_S = 60.0
CLOSES_S = 5.0
"""Idle opens of a mount that has ended are closed at once, those of fetches in flight when they end."""


class Mountable(Protocol):
    """What a volume is mounted with."""

    @property
    def attributes(self) -> Mapping[str, str]: ...

    @property
    def secrets(self) -> Mapping[str, str]: ...


@dataclass
class Bucket:
    """A dataset in the store: the objects that were put, by path below ``data/``."""

    server: SeaweedFsServer
    name: str
    objects: dict[str, bytes]

    @property
    def attributes(self) -> dict[str, str]:
        return {"url": f"s3://{self.name}/data", "endpoint": self.server.endpoint}

    @property
    def secrets(self) -> dict[str, str]:
        return {
            "access_key_id": self.server.access_key_id,
            "secret_access_key": self.server.secret_access_key,
        }

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.objects.values()))

    def put(self, path: str, data: bytes) -> None:
        """Puts or replaces one object."""
        obstore.put(self._store(), f"data/{path}", data)
        self.objects[path] = data

    def _store(self) -> S3Store:
        return S3Store(
            self.name,
            endpoint=self.server.endpoint,
            access_key_id=self.server.access_key_id,
            secret_access_key=self.server.secret_access_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def fill(self, objects: Mapping[str, bytes]) -> None:
        store = self._store()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: obstore.put(store, f"data/{item[0]}", item[1]), objects.items()))
        self.objects.update(objects)


def made_bucket(server: SeaweedFsServer, name: str, small: int, large: int, seed: int = 1) -> Bucket:
    """``small`` objects of about 100 kB and ``large`` ones of 12 to 20 MB, seeded."""
    draw = random.Random(seed)
    server.create_bucket(name)
    bucket = Bucket(server, name, {})
    objects = {f"small/{number:04}.bin": draw.randbytes(draw.randint(90_000, 130_000)) for number in range(small)}
    objects |= {f"large/{number}.bin": draw.randbytes(draw.randint(12, 20) << 20) for number in range(large)}
    bucket.fill(objects)
    return bucket


@dataclass
class DaemonBench:
    """Starts daemons with one cache directory; ``close`` ends all processes and mounts."""

    directory: Path
    flags: tuple[str, ...] = ()
    keep: bool = True
    log_path: Path | None = None
    """Where its processes log; None: to the test's own output."""
    keeper_flags: tuple[str, ...] = ()
    leaves_fetches: bool = False
    """Fetches are in flight at the end, of a store that hangs or is gone, and have their files open."""
    closes_s: float = CLOSES_S
    """How long a file may be open without a mount. More than the deadline of volumes whose stores go away right after a
    read: readers have all bytes of a large object before its checksum is asked for, and that is retried until then."""
    forked: ClassVar[bool] = True
    """Its processes are forks of one that has imported the driver. False: new ones, as a node has them."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mount_points: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("cache", "registry", "run"):
            (self.directory / name).mkdir(exist_ok=True)
        if self.keep:
            self.start_keeper()

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def start_keeper(self) -> None:
        """Starts the first keeper, or another one after ``keeper`` has ended."""
        (self.run / "keeper.sock").unlink(missing_ok=True)
        self.keeper = self.start_process("keeper", f"--socket={self.run / 'keeper.sock'}", *self.keeper_flags)
        wait_until((self.run / "keeper.sock").is_socket)

    def start_again(self) -> subprocess.Popen[bytes]:
        """A daemon beside another one, or that cannot start. Returns at once."""
        keeper = (f"--keeper-socket={self.run / 'keeper.sock'}",) if self.keep else ()
        return self.start_process(
            "cache",
            f"--socket={self.run / 'cache.sock'}",
            f"--state-dir={self.directory / 'state'}",
            f"--cache-dir={self.cache}",
            f"--registry={self.directory / 'registry'}",
            *keeper,
            *self.flags,
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Returns when the daemon answers."""
        daemon = self.start_again()
        with self.client() as client:
            wait_until(lambda: daemon.poll() is not None or _answers(client))
        assert daemon.poll() is None, "the daemon ended at once; see its log"
        return daemon

    @contextmanager
    def client(self) -> Iterator[DaemonClient]:
        client = DaemonClient(self.run / "cache.sock")
        try:
            yield client
        finally:
            client.close()

    def mount(self, bucket: Mountable, volume_id: str = "volume-1", **attributes: str) -> Path:
        mount_point = self.directory / f"mount-{volume_id}"
        mount_point.mkdir(exist_ok=True)
        if mount_point not in self.mount_points:
            self.mount_points.append(mount_point)
        with self.client() as client:
            request = MountRequest(
                volume_id, os.fspath(mount_point), {**bucket.attributes, **attributes}, dict(bucket.secrets)
            )
            client.mount(request)
        return mount_point

    def unmount(self, mount_point: Path, volume_id: str = "volume-1") -> None:
        with self.client() as client:
            client.unmount(volume_id, os.fspath(mount_point))

    def origin_bytes(self) -> int:
        with self.client() as client:
            return client.report().origin_bytes

    def close(self) -> None:
        for mount_point in self.mount_points:
            with suppress(MountError):
                entry = mounting.find(mount_point)
                if entry is not None:
                    mounting.unmount(mount_point, lazy=True)
                    mounting.abort(entry)
        left_open = set() if self.leaves_fetches else self._object_files_left_open()
        for process in reversed(self.processes):
            stop(process)
        assert not left_open, f"open in a daemon without a mount, and so never evicted: {left_open}"

    def _object_files_left_open(self) -> set[str]:
        """Object files that a daemon has open for ``closes_s`` without a gap."""
        until = time.monotonic() + 2 * self.closes_s

        def looks() -> Iterator[tuple[float, set[str]]]:
            while time.monotonic() < until:
                yield time.monotonic(), self._open_object_files()
                time.sleep(0.02)

        return open_too_long(looks(), self.closes_s)

    def _open_object_files(self) -> set[str]:
        folders = f"{self.cache}/objects/", f"{self.cache}/partial/"
        found: set[str] = set()
        for process in self.processes:
            if process.poll() is not None or _is_stopped(process.pid):
                continue
            for descriptor in os.listdir(f"/proc/{process.pid}/fd"):
                with suppress(FileNotFoundError):
                    target = os.readlink(f"/proc/{process.pid}/fd/{descriptor}")
                    if target.startswith(folders):
                        found.add(target)
        return found

    def start_process(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command of ``hayloft``, ended by ``close``."""
        with ExitStack() as stack:
            log = None if self.log_path is None else stack.enter_context(self.log_path.open("ab"))
            if self.forked:
                process: subprocess.Popen[bytes] = ForkedCommand(list(arguments), stderr=log)
            else:
                command = [sys.executable, "-m", "csi_driver.cli", *arguments]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self.processes.append(process)
        return process


def open_too_long(looks: Iterable[tuple[float, set[str]]], limit_s: float) -> set[str]:
    """The paths of files that every look of ``limit_s`` has found; a file may move to another directory in between, or
    be deleted. No look is taken once there is none. A daemon that has run for half a minute scrubs: it opens one file
    after the other, whatever else uses them, and needs none of them to stay."""
    since: dict[str, float] = {}
    for now_s, found in looks:
        named = {os.path.basename(path.removesuffix(" (deleted)")): path for path in found}
        since = {name: since.get(name, now_s) for name in named}
        over = {named[name] for name, began_s in since.items() if now_s - began_s >= limit_s}
        if over or not since:
            return over
    return set()


def _is_stopped(process_id: int) -> bool:
    """Whether SIGSTOP has suspended it."""
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """Ends a process and waits for it; with SIGKILL after a time-out."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: object, timeout_s: float = START_S) -> None:
    """Polls until the condition holds. Fails the test when it times out."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def _answers(client: DaemonClient) -> bool:
    try:
        client.report()
    except DaemonUnavailable:
        return False
    return True


def digest_of_tree(root: Path) -> dict[str, str]:
    """SHA-256 by path of all files below a directory."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            with path.open("rb") as file:
                found[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def digest_of_objects(objects: Mapping[str, bytes]) -> dict[str, str]:
    """The same for the objects of a bucket."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in objects.items()}
