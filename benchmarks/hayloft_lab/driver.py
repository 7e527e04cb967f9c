"""The driver as a child process: ``hayloft all-in-one`` with its own cache, registry and socket."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from csi_driver.model.errors import HayloftError
from csi_driver.mounts.bind_mounts import unmount
from csi_driver.mounts.mount_table import MountTable
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet
from hayloft_lab.programs import program

START_TIMEOUT_S = 30.0
"""It is ready within 2 s on two idle cores."""
STOP_TIMEOUT_S = 20.0


class DriverFailed(Exception):
    """The driver did not become ready; the text ends with the end of its log."""


class Driver:
    """Starts and ends one driver. ``start`` returns at once; a caller that handles signals must not be interrupted
    before it has registered ``stop``."""

    def __init__(self, directory: Path, arguments: Sequence[str] = ()) -> None:
        """All files lie below ``directory``, whose path must be short: it holds the socket (107 characters).
        ``arguments`` are added to those of ``hayloft all-in-one``."""
        self._directory = directory
        self._arguments = tuple(arguments)
        self._socket = directory / "csi.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.cache_directory = directory / "cache"
        self.registry_directory = directory / "registry"
        self.log_path = directory / "driver.log"

    @property
    def endpoint(self) -> str:
        """The CSI endpoint."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Of the first process of the tree; None when it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        for directory in (self.cache_directory, self.registry_directory):
            directory.mkdir(parents=True, exist_ok=True)
        command = [*_hayloft(), "all-in-one", "--endpoint", self.endpoint]
        command += ["--registry", str(self.registry_directory), "--cache-dir", str(self.cache_directory)]
        command += self._arguments
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must not end it before the volume is unmounted.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self, kubelet: EmulatedKubelet) -> None:
        """Blocks for up to ``START_TIMEOUT_S``. Raises DriverFailed."""
        try:
            kubelet.wait_until_ready(START_TIMEOUT_S, self.is_running)
        except (HayloftError, CallRefused) as error:
            raise DriverFailed(f"the driver did not start: {error}; the end of its log:\n{self.log_end()}") from None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to the session after ``STOP_TIMEOUT_S``. Does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Not reaped yet, so the number is still that of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log_end(self, lines: int = 15) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"


def unmount_below(directory: Path) -> list[str]:
    """Unmounts everything below the directory, deepest first; returns the mount points that remain."""
    for entry in sorted(MountTable.read().below(directory), key=lambda entry: len(entry.mount_point), reverse=True):
        with contextlib.suppress(HayloftError, OSError):
            unmount(Path(entry.mount_point), lazy=True)
    return [entry.mount_point for entry in MountTable.read().below(directory)]


def _hayloft() -> list[str]:
    found = program("hayloft")
    return [str(found)] if found is not None else [sys.executable, "-m", "csi_driver.cli"]
