"""A node with one volume of a model, as a server of inference has it."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.run import usage
from hayloft_bench.run.cache_states import files_below
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.targets.base import REGION
from hayloft_lab.driver import Driver
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume
from hayloft_lab.seaweedfs import SeaweedFsServer

_CACHED_S = 60.0
_POLL_S = 0.05


class ModelNode:
    """A driver with an empty cache, and a volume with ``profile: inference`` and without a warmup, so that the first
    load is cold. A context manager."""

    def __init__(self, directory: Path, server: SeaweedFsServer, stopping: Stopping) -> None:
        """The path must be short: it holds sockets."""
        self._directory = directory
        self._server = server
        self._stopping = stopping
        self._driver = Driver(directory)
        self._kubelet = EmulatedKubelet(self._driver.endpoint, directory / "kubelet")
        self._volume: Volume | None = None

    def __enter__(self) -> ModelNode:
        self._directory.mkdir(parents=True)
        with self._stopping.shield():
            self._driver.start()
        try:
            self._driver.wait_until_ready(self._kubelet)
        except BaseException:
            self._driver.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kubelet.close()
        self._driver.stop()

    def publish(self) -> Path:
        """The directory that the first pod sees. Raises ProcessFailed."""
        server = self._server
        parameters = {"url": "s3://bench/data", "endpoint": server.endpoint, "region": REGION}
        secrets = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
        try:
            self._volume = self._kubelet.create(
                "pvc-model", {**parameters, "profile": "inference", "warmup": "none"}, secrets
            )
            self._kubelet.stage(self._volume)
            return self._kubelet.publish(self._volume)
        except CallRefused as refused:
            raise ProcessFailed(str(refused)) from None

    def publish_again(self) -> Path:
        """The directory that the next pod sees, after the end of the first one. Raises ProcessFailed."""
        assert self._volume is not None
        try:
            self._kubelet.unpublish(self._volume)
            return self._kubelet.publish(self._volume)
        except CallRefused as refused:
            raise ProcessFailed(str(refused)) from None

    def wait_until_cached(self, dataset_bytes: int) -> None:
        """The last bytes are written after they were read. Raises ProcessFailed."""
        until_s = time.monotonic() + _CACHED_S
        while sum(path.stat().st_size for path in self.object_files()) < dataset_bytes:
            if time.monotonic() > until_s:
                raise ProcessFailed("the model was not complete in the cache a minute after it was loaded")
            time.sleep(_POLL_S)

    def object_files(self) -> list[Path]:
        """Of complete objects."""
        return files_below(self._driver.cache_directory / "objects")

    def cpu_s(self) -> float:
        """Processor time of the driver."""
        return usage.of_tree(self._driver.pid, self._directory / "none").cpu_s
