"""``rclone mount`` with its cache on disk."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Access
from hayloft_bench.targets.base import REGION, MountedPeer
from hayloft_lab.programs import program


class Rclone(MountedPeer):
    """rclone with the settings that its documentation recommends for reading."""

    name: ClassVar[str] = "rclone"
    title: ClassVar[str] = "rclone mount"
    command_name: ClassVar[str] = "rclone"
    remedy: ClassVar[str] = "pip install 'hayloft[bench]'"
    settings: ClassVar[dict[str, str]] = {
        "--vfs-cache-mode=full": "the mode that caches reads on the disk",
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
        "--async-read": "its default, named here because it matters for sequential reads",
        "--no-checksum": "no comparison of checksums after a download",
        "--read-only": "a dataset for training is not written to",
        "--allow-other": "as a pod would see it",
    }

    @property
    def version(self) -> str:
        return super().version.removeprefix("rclone ")

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        store = self.place.store
        environment = {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_STORE_ENDPOINT": store.endpoint,
            "RCLONE_CONFIG_STORE_REGION": REGION,
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": store.access_key_id,
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": store.secret_access_key,
        }
        command = [str(program("rclone")), "mount", *self.settings, f"--cache-dir={self.cache}"]
        if cache_limit_bytes is not None:
            # It polls the size of its cache once a minute by default: an epoch could fill the disk before that.
            command += [f"--vfs-cache-max-size={cache_limit_bytes}B", "--vfs-cache-poll-interval=1s"]
        self._launch([*command, f"store:{self.place.bucket}/{self.place.prefix}", str(self.mount_point)], environment)
        return Access("directory", root=str(self.mount_point))
