"""The base classes of targets: where they find the dataset, and how a program that mounts is started and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import psutil

from csi_driver.model.errors import HayloftError
from csi_driver.mounts.bind_mounts import unmount
from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import PHASES, Access, Phase, TargetUsage
from hayloft_bench.run import usage
from hayloft_bench.run.trash import Trash
from hayloft_lab.driver import unmount_below
from hayloft_lab.programs import program

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 5.0
LOG_LINES = 6
REGION = "us-east-1"
"""SeaweedFS ignores it; clients require one."""

TargetKind = Literal["limit", "hayloft", "mount", "client", "path"]


class Store(Protocol):
    """The S3 server with the bucket, as a client on this node reaches it."""

    @property
    def endpoint(self) -> str: ...
    @property
    def access_key_id(self) -> str: ...
    @property
    def secret_access_key(self) -> str: ...
    def create_bucket(self, name: str) -> None:
        """Raises StoreUnavailable."""


@dataclass(frozen=True)
class Place:
    """Where one dataset is: plain files, a prefix (which ends with a slash) of a bucket, and a work directory for
    targets."""

    plain: Path
    work: Path
    store: Store = field(repr=False)
    trash: Trash = field(repr=False)
    bucket: str = "bench"
    prefix: str = "data/"
    mounted: Path | None = None
    """The directory that the user mounted and named with ``--path``; it holds the dataset."""


class TargetBase:
    """Defaults for a target without processes of its own. ``model.Target`` documents the methods."""

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[TargetKind]
    settings: ClassVar[dict[str, str]] = {}
    phases: ClassVar[frozenset[Phase]] = frozenset()
    copies: ClassVar[int] = 0

    def __init__(self, place: Place) -> None:
        self.place = place
        self.directory = place.work / self.name

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    @property
    def version(self) -> str:
        return ""

    def set_up(self) -> None:
        """Nothing to set up."""

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        raise NotImplementedError

    def clear(self) -> None:
        """Nothing is cached."""

    def restart_daemon(self) -> None:
        raise ProcessFailed(f"{self.name} has no daemon")

    def usage(self) -> TargetUsage:
        return TargetUsage()

    def log_end(self) -> str:
        return ""

    def stop(self) -> None:
        """Nothing runs."""


class MountedPeer(TargetBase):
    """A program that shows the dataset as a directory, caches it, and stays in the foreground."""

    kind: ClassVar[TargetKind] = "mount"
    phases: ClassVar[frozenset[Phase]] = frozenset(PHASES)
    copies: ClassVar[int] = 1
    command_name: ClassVar[str]
    remedy: ClassVar[str]
    """How to install the program."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.cache = self.directory / "cache"
        self.mount_point = self.directory / "mount"
        self._process: subprocess.Popen[bytes] | None = None
        self._launched: tuple[list[str], dict[str, str]] = ([], {})

    @classmethod
    def unavailable(cls) -> str | None:
        if program(cls.command_name) is None:
            return f"{cls.command_name} is not installed: {cls.remedy}"
        return cannot_mount()

    @property
    def version(self) -> str:
        return version_line([str(program(self.command_name)), "--version"])

    def set_up(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        self.place.trash.put(self.cache)

    def usage(self) -> TargetUsage:
        return usage.of_tree(None if self._process is None else self._process.pid, self.cache)

    def log_end(self) -> str:
        try:
            lines = (self.directory / "log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_LINES:])

    def stop(self) -> None:
        with contextlib.suppress(OSError, HayloftError):
            unmount(self.mount_point)
        self._end()
        unmount_below(self.directory)

    def restart_daemon(self) -> None:
        """Kills the process that serves the mount. A program without a supervisor is mounted again at the same place,
        as an operator would do."""
        processes = usage.tree(None if self._process is None else self._process.pid)
        if not processes:
            raise ProcessFailed(f"{self.name} does not run")
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[-1].send_signal(signal.SIGKILL)
        if len(processes) > 1:
            return
        self._end()
        unmount_below(self.directory)
        self._launch(*self._launched)

    def _launch(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts the program and waits for the mount. Raises ProcessFailed with the end of its log."""
        self._launched = (command, environment)
        self.mount_point.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while MountTable.read().at(self.mount_point) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} did not mount: {self.log_end()}")
            time.sleep(0.02)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        helpers = usage.tree(process.pid)[1:]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)  # the program ends by itself once its mount is gone
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
        if process.poll() is None:
            process.kill()
            process.wait()
        for helper in helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                helper.kill()  # psutil compares start times, so a reused process id is not killed


def cannot_mount() -> str | None:
    """Why nothing can be mounted on this machine, or None."""
    if os.geteuid() != 0:
        return "mounting needs root: run it with sudo"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse --privileged"
    return None


def version_line(command: list[str]) -> str:
    """The first line of a program's output about its version; empty if there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter((done.stdout or done.stderr).splitlines()), "").strip()
