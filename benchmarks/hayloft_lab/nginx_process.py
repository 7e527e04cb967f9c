"""nginx processes on loopback, for benchmarks and tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from hayloft_lab.child_servers import dying_with_parent

HOST = "127.0.0.1"
START_S = 30.0
STOP_S = 5.0
_UNPACKED = Path(__file__).resolve().parents[2] / ".stores/nginx/usr/sbin/nginx"
"""Where `.ci/stores nginx` puts it."""


def find_nginx() -> Path | None:
    """The program: that of ``.ci/stores nginx``, else the one on PATH."""
    if _UNPACKED.is_file():
        return _UNPACKED
    found = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    return None if found is None else Path(found)


class NginxFailed(Exception):
    """It did not start; the text ends with the end of its log."""


class NginxProcess:
    """One server on one port. Start it in a thread that lives as long as the server should: the kernel kills it when
    that thread ends."""

    def __init__(self, directory: Path, port: int, host: str = HOST) -> None:
        """``directory``: of its configuration and its log. ``host``: an address in the server's network namespace."""
        self.directory, self.port, self.host = directory, port, host
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        return self.directory / "nginx.log"

    def write_config(self) -> Path:
        """The file of the configuration, written; nginx stays in the foreground by it."""
        raise NotImplementedError

    def command(self, *arguments: str) -> list[str]:
        """Of nginx with this configuration."""
        program = find_nginx()
        if program is None:
            raise NginxFailed("nginx is not installed: .ci/stores nginx")
        return [str(program), "-p", str(self.directory), "-e", "stderr", "-c", str(self.write_config()), *arguments]

    def start(self) -> None:
        """Blocks until it accepts connections. Raises NginxFailed."""
        command = self.command()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                return
            time.sleep(0.02)
        self.stop()
        raise NginxFailed(self.log_path.read_text(errors="replace")[-2000:])

    def stop(self) -> None:
        """Harmless if it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Master and workers at once."""
        self._end(signal.SIGKILL)

    def cpu_s(self) -> float:
        """Of all its processes, since the start."""
        total = 0
        for pid in self._members():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def _members(self) -> list[int]:
        """Of its process group: nginx has a session of its own."""
        if self._process is None:
            return []
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with suppress(OSError):
                    if os.getpgid(int(path.name)) == self._process.pid:
                        found.append(int(path.name))
        return found

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _end(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait()
        self._process = None
