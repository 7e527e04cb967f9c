"""What Hayloft is compared with, and Hayloft itself: started, emptied and stopped in the same way.

Every peer runs with the settings that its own documentation recommends for reading a dataset that does not change;
each setting has its reason beside it. A peer is ended by unmounting what it mounted and by its process id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from csi_driver.demo.driver import Driver, unmount_below
from csi_driver.demo.errors import DemoFailed
from csi_driver.demo.extra import program
from csi_driver.mounts.bind import unmount
from csi_driver.mounts.mount_table import MountTable
from csi_driver.wiring.kubelet import Kubelet, Volume
from csi_driver.wiring.s3_server import S3Server

BUCKET, PREFIX = "bench", "data/"
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Place:
    """Where the dataset is: plain files, and a bucket of a running store."""

    plain: Path
    server: S3Server = field(repr=False)
    work: Path


class Peer:
    """Something that shows the dataset as a directory and caches it. ``start`` after ``clear`` is cold."""

    name = ""
    settings: ClassVar[dict[str, str]]

    def __init__(self, place: Place) -> None:
        self.place = place
        self.directory = place.work / self.name
        self.cache = self.directory / "cache"
        self.mount_point = self.directory / "mount"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def is_installed(cls) -> bool:
        raise NotImplementedError

    def set_up(self) -> None:
        """Once, before the first start."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> Path:
        """Mounts, and gives the directory with the dataset."""
        raise NotImplementedError

    def stop(self) -> None:
        """Unmounts and ends the process; harmless when it does not run."""
        with contextlib.suppress(OSError):
            unmount(self.mount_point)
        self._end()

    def clear(self) -> None:
        """Removes everything it cached. It must not run."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def tear_down(self) -> None:
        """Ends it, whatever state it is in."""
        self._end()
        unmount_below(self.directory)

    def _launch(self, command: list[str], environment: dict[str, str]) -> None:
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
        give_up = time.monotonic() + START_TIMEOUT_S
        while MountTable.read().at(self.mount_point) is None:
            if self._process.poll() is not None or time.monotonic() > give_up:
                end = (self.directory / "log").read_text(errors="replace").splitlines()[-8:]
                raise DemoFailed(f"{self.name} did not mount:\n" + "\n".join(end))
            time.sleep(0.02)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            # An unmounted one ends by itself.
            process.wait(5)
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class HayloftPeer(Peer):
    """Hayloft, through the calls that kubelet makes. Settings: none, the defaults are what is to be measured."""

    name = "hayloft"
    settings: ClassVar[dict[str, str]] = {}

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._driver: Driver | None = None
        self._kubelet: Kubelet | None = None
        self._volume: Volume | None = None

    @classmethod
    def is_installed(cls) -> bool:
        return program("hayloft") is not None

    def start(self) -> Path:
        server = self.place.server
        self._driver = Driver(self.directory)
        self._driver.start()
        self._kubelet = Kubelet(self._driver.endpoint, self.directory / "kubelet")
        self._driver.wait_until_ready(self._kubelet)
        parameters = {"url": f"s3://{BUCKET}/{PREFIX}", "endpoint": server.endpoint, "region": "us-east-1"}
        secrets = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
        self._volume = self._kubelet.create("pvc-bench", parameters, secrets)
        self._kubelet.stage(self._volume)
        return self._kubelet.publish(self._volume)

    def stop(self) -> None:
        if self._kubelet is not None and self._volume is not None:
            self._kubelet.unpublish(self._volume)
            self._kubelet.unstage(self._volume)
            self._kubelet.delete(self._volume)
        self.tear_down()

    def tear_down(self) -> None:
        if self._kubelet is not None:
            self._kubelet.close()
        if self._driver is not None:
            self._driver.stop()
        self._kubelet, self._driver, self._volume = None, None, None
        unmount_below(self.directory)


class JuiceFsPeer(Peer):
    """JuiceFS keeps data in a format of its own: the files are written into it once, into a bucket of its own."""

    name = "juicefs"
    settings: ClassVar = {
        "--read-only": "a dataset for training is not written to",
        "--cache-size=100G": "larger than the dataset: nothing is evicted",
        "--free-space-ratio=0.02": "the default, 0.1, empties the cache on a disk that is more than 90 % full",
        "--buffer-size=1024M": "its documentation: larger than 300M for large sequential reads",
        "--max-fuse-io=1M": "the largest request the kernel sends; the default is 128K",
        "--open-cache=86400s": "its documentation for training: no look at the metadata at a second open",
        "--attr-cache=86400s": "the same for attributes, in the kernel",
        "--entry-cache=86400s": "the same for names",
        "--dir-entry-cache=86400s": "the same for directories",
        "--backup-meta=0": "no upload of metadata while it is measured",
        "--no-bgjob": "no background jobs while it is measured",
        "--no-usage-report": "no connection to anywhere else",
        "--metrics=127.0.0.1:0": "two of them may run one after the other",
    }

    @classmethod
    def is_installed(cls) -> bool:
        return program("juicefs") is not None

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.directory / 'metadata.db'}"

    def set_up(self) -> None:
        super().set_up()
        server = self.place.server
        server.create_bucket("juicefs")
        keys = {"ACCESS_KEY": server.access_key_id, "SECRET_KEY": server.secret_access_key}
        command = [str(program("juicefs")), "format", "--storage=s3", f"--bucket={server.endpoint}/juicefs"]
        command += ["--trash-days=0", self._metadata, "bench"]
        done = subprocess.run(
            command,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), **keys},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"juicefs format: {done.stderr.decode(errors='replace')[-600:]}")
        self._mount(["--backup-meta=0", "--no-usage-report", "--metrics=127.0.0.1:0"])
        try:
            shutil.copytree(self.place.plain, self.mount_point / "data")
        finally:
            self.stop()
        self.clear()

    def start(self) -> Path:
        self._mount(list(self.settings))
        return self.mount_point / "data"

    def _mount(self, settings: list[str]) -> None:
        command = [str(program("juicefs")), "mount", *settings, f"--cache-dir={self.cache}", "--no-syslog"]
        self._launch([*command, self._metadata, str(self.mount_point)], {})


class RclonePeer(Peer):
    """``rclone mount`` with its cache on disk."""

    name = "rclone"
    settings: ClassVar = {
        "--vfs-cache-mode=full": "the mode that keeps what was read on the disk",
        "--vfs-cache-max-age=24h": "nothing expires while it is measured",
        "--vfs-read-chunk-streams=16": "its documentation: a reasonable start for high performance object stores",
        "--vfs-read-chunk-size=4M": "the same",
        "--vfs-read-ahead=128M": "its documentation: set it large in this mode, rather than --buffer-size",
        "--vfs-fast-fingerprint": "its documentation recommends it for a cache over S3",
        "--use-server-modtime": "its documentation: reading the time of a file takes a request otherwise",
        "--dir-cache-time=24h": "the dataset does not change",
        "--attr-timeout=24h": "the same, in the kernel",
        "--poll-interval=0": "the same",
        "--max-read-ahead=4M": "the kernel reads ahead 128K by default",
        "--async-read": "its default, said here because it matters for sequential reads",
        "--no-checksum": "no comparison of checksums after a download",
        "--read-only": "a dataset for training is not written to",
        "--allow-other": "as a pod would see it",
    }

    @classmethod
    def is_installed(cls) -> bool:
        return program("rclone") is not None

    def start(self) -> Path:
        server = self.place.server
        environment = {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_STORE_ENDPOINT": server.endpoint,
            "RCLONE_CONFIG_STORE_REGION": "us-east-1",
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": server.access_key_id,
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": server.secret_access_key,
        }
        command = [str(program("rclone")), "mount", *self.settings, f"--cache-dir={self.cache}"]
        self._launch([*command, f"store:{BUCKET}/{PREFIX}", str(self.mount_point)], environment)
        return self.mount_point


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (HayloftPeer, JuiceFsPeer, RclonePeer)}
