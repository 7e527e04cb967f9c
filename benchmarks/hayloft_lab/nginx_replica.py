"""Replicas of the cluster's cache: real nginx processes on loopback, for benchmarks and tests."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

from csi_driver.objects.tier.nginx_config import MIB, ReplicaConfig, TlsFiles, render
from hayloft_lab.child_servers import free_ports
from hayloft_lab.nginx_process import HOST, NginxProcess


class NginxReplica(NginxProcess):
    """One replica. It keeps its ports and its cache over a restart."""

    def __init__(
        self,
        directory: Path,
        *,
        link_secret: str = "",
        tls: TlsFiles | None = None,
        size_bytes: int = 4 << 30,
        slice_bytes: int = 8 * MIB,
        valid_s: int = 24 * 3600,
        cache: Path | None = None,
    ) -> None:
        """``cache``: a directory on another disk."""
        port, self._status_port = free_ports(2, HOST)
        super().__init__(directory, port)
        self._cache = cache or directory / "cache"
        self._config = ReplicaConfig(
            directory=os.fspath(self._cache),
            size_bytes=size_bytes,
            listen=f"{HOST}:{self.port}",
            status_listen=f"{HOST}:{self._status_port}",
            tls=tls,
            link_secret=link_secret,
            slice_bytes=slice_bytes,
            valid_s=valid_s,
            workers="1",
        )

    @property
    def address(self) -> str:
        """As ``hayloft cache --tier`` takes it."""
        return f"{HOST}:{self.port}"

    def write_config(self) -> Path:
        """The file of the configuration, written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nginx.conf"
        # As root nginx gives its workers to another user, which cannot enter directories of a test.
        path.write_text(("user root;\n" if os.geteuid() == 0 else "") + render(self._config))
        return path

    def suspend(self) -> None:
        """It hangs: connections are accepted by the kernel, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def requests(self) -> int:
        """That it has got, by stub_status."""
        url = f"http://{HOST}:{self._status_port}/status"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.read().decode().splitlines()[2].split()[2])

    def cached_bytes(self) -> int:
        """On its disk."""
        return sum(path.stat().st_size for path in (self._cache / "slices").rglob("*") if path.is_file())
