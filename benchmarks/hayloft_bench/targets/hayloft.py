"""Hayloft, through the calls that kubelet makes. Only the view is set: the defaults are measured."""

from __future__ import annotations

import contextlib
import signal
from typing import ClassVar

import psutil

from csi_driver.wiring.version import hayloft_version
from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import PHASES, Access, Phase, TargetUsage
from hayloft_bench.run import usage
from hayloft_bench.targets.base import LOG_LINES, REGION, Place, TargetBase, TargetKind, cannot_mount
from hayloft_lab.driver import Driver, unmount_below
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet, Volume


class Hayloft(TargetBase):
    """A volume with default settings: the driver chooses between FUSE and hard links."""

    name: ClassVar[str] = "hayloft"
    title: ClassVar[str] = "Hayloft"
    kind: ClassVar[TargetKind] = "hayloft"
    phases: ClassVar[frozenset[Phase]] = frozenset(PHASES)
    copies: ClassVar[int] = 1
    view: ClassVar[str | None] = None

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._driver = Driver(self.directory)
        self._kubelet: EmulatedKubelet | None = None
        self._volume: Volume | None = None

    @classmethod
    def unavailable(cls) -> str | None:
        return cannot_mount()

    @property
    def version(self) -> str:
        return hayloft_version()

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        limit = () if cache_limit_bytes is None else (f"--cache-limit={cache_limit_bytes}",)
        self._driver = Driver(self.directory, limit)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._driver.start()
        self._kubelet = EmulatedKubelet(self._driver.endpoint, self.directory / "kubelet")
        self._driver.wait_until_ready(self._kubelet)
        store = self.place.store
        parameters = {"url": f"s3://{self.place.bucket}/{self.place.prefix}", "endpoint": store.endpoint}
        parameters |= {"region": REGION} | ({"view": self.view} if self.view else {})
        secrets = {"access_key_id": store.access_key_id, "secret_access_key": store.secret_access_key}
        try:
            self._volume = self._kubelet.create("pvc-bench", parameters, secrets)
            self._kubelet.stage(self._volume)
            return Access("directory", root=str(self._kubelet.publish(self._volume)))
        except CallRefused as refused:
            raise ProcessFailed(str(refused)) from None

    def clear(self) -> None:
        # The registry too: the manifest is made again, as for a new dataset.
        self.place.trash.put(self.directory)

    def restart_daemon(self) -> None:
        """The supervisor, ``hayloft all-in-one``, starts the daemon again; the keeper holds the mount meanwhile."""
        for process in usage.tree(self._driver.pid)[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "cache" in process.cmdline():
                    process.send_signal(signal.SIGKILL)
                    return
        raise ProcessFailed("the cache daemon does not run")

    def usage(self) -> TargetUsage:
        return usage.of_tree(self._driver.pid, self._driver.cache_directory)

    def log_end(self) -> str:
        return self._driver.log_end(LOG_LINES)

    def stop(self) -> None:
        kubelet, self._kubelet = self._kubelet, None
        volume, self._volume = self._volume, None
        if kubelet is not None:
            if volume is not None and self._driver.is_running():
                for undo in (kubelet.unpublish, kubelet.unstage, kubelet.delete):
                    with contextlib.suppress(CallRefused):
                        undo(volume)
            kubelet.close()
        self._driver.stop()
        unmount_below(self.directory)


class HayloftFuse(Hayloft):
    """The FUSE view, even if the driver would choose hard links."""

    name: ClassVar[str] = "hayloft-fuse"
    title: ClassVar[str] = "Hayloft, FUSE"
    view: ClassVar[str | None] = "fuse"
    settings: ClassVar[dict[str, str]] = {"view=fuse": "FUSE, even if the driver would choose hard links"}


class HayloftMaterialised(Hayloft):
    """Hard links to the cache's files: publishing fetches the complete dataset, and no read goes through FUSE."""

    name: ClassVar[str] = "hayloft-materialised"
    title: ClassVar[str] = "Hayloft, hard links"
    view: ClassVar[str | None] = "materialised"
    phases: ClassVar[frozenset[Phase]] = frozenset({"warm", "hot", "restart"})
    settings: ClassVar[dict[str, str]] = {
        "view=materialised": "a directory of hard links; the dataset is fetched before it is shown, so no read is cold"
    }
