"""The driver of one node as a cluster runs it: ``hayloft cache`` and ``hayloft node``, with the flags of an operator.
``driver.Driver`` is ``hayloft all-in-one``, which trusts every volume."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from csi_driver.model.errors import HayloftError
from hayloft_lab.driver import START_TIMEOUT_S, STOP_TIMEOUT_S, DriverFailed, unmount_below
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet
from hayloft_lab.programs import program


class NodeDriver:
    """Starts and ends both processes; without a keeper, so that its mounts end with the daemon."""

    def __init__(self, directory: Path, cache_arguments: Sequence[str] = (), log_level: str = "info") -> None:
        """All files lie below ``directory``, whose path must be short: it holds the sockets (107 characters).
        ``cache_arguments`` are added to those of ``hayloft cache``."""
        self._directory = directory
        self._cache_arguments = tuple(cache_arguments)
        self._log_level = log_level
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kubelet_directory = directory / "kubelet"
        self.log_path = directory / "driver.log"

    @property
    def endpoint(self) -> str:
        """The CSI endpoint."""
        return f"unix://{self._directory / 'csi.sock'}"

    def start(self) -> None:
        """Returns at once."""
        for name in ("cache", "registry", "kubelet"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        daemon_socket = self._directory / "cache.sock"
        self._start(
            "cache",
            f"--socket={daemon_socket}",
            f"--state-dir={self._directory / 'state'}",
            f"--cache-dir={self._directory / 'cache'}",
            f"--registry={self._directory / 'registry'}",
            *self._cache_arguments,
        )
        self._start(
            "node",
            f"--endpoint={self.endpoint}",
            "--node-id=node-1",
            f"--daemon-socket={daemon_socket}",
            f"--kubelet-dir={self.kubelet_directory}",
        )

    def wait_until_ready(self, kubelet: EmulatedKubelet) -> None:
        """Blocks for up to ``START_TIMEOUT_S``. Raises DriverFailed."""
        try:
            kubelet.wait_until_ready(START_TIMEOUT_S, self.is_running)
        except (HayloftError, CallRefused) as error:
            raise DriverFailed(f"the driver did not start: {error}; the end of its log:\n{self.log_end()}") from None

    def is_running(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after ``STOP_TIMEOUT_S``; then everything below the directory is unmounted."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        unmount_below(self._directory)

    def log_end(self, lines: int = 15) -> str:
        """The last lines of the log of both."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def _start(self, *arguments: str) -> None:
        found = program("hayloft")
        command = [str(found)] if found is not None else [sys.executable, "-m", "csi_driver.cli"]
        with self.log_path.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [*command, *arguments, f"--log-level={self._log_level}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C must not end it. In a session of its own its share of the processors would not depend on
                    # the priorities of the programs beside it (sched(7), autogroup).
                    process_group=0,
                )
            )
