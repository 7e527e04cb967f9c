"""A daemon with a web page, and datasets of this machine that it shows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from hayloft_lab.child_servers import free_ports
from tests.support.daemons import DaemonBench

HOST = "127.0.0.1"


class LocalDataset:
    """A directory as a volume: ``file://``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.attributes: Mapping[str, str] = {"url": f"file://{directory}"}
        self.secrets: Mapping[str, str] = {}

    def write(self, path: str | bytes, size_bytes: int, seed: int = 0) -> None:
        """A file of random bytes."""
        name = path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.Random(seed or size_bytes).randbytes(size_bytes))


class WebBench(DaemonBench):
    """Its daemon serves a page at ``url``."""

    def __init__(self, directory: Path, *flags: str) -> None:
        directory.mkdir(exist_ok=True)
        (self.port,) = free_ports(1, HOST)
        common = ("--allow-file-urls", "--trusted-namespace=*", "--free-floor=0", "--no-openless")
        super().__init__(directory, flags=(*common, f"--web-port={self.port}", *flags))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"
