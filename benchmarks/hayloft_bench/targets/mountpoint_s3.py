"""Mountpoint for Amazon S3, the program ``mount-s3``."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Access
from hayloft_bench.targets.base import REGION, MountedPeer
from hayloft_lab.programs import program

MIB = 1 << 20


class MountpointS3(MountedPeer):
    """Cache on disk and metadata that do not expire: its documentation's advice for repeated reads."""

    name: ClassVar[str] = "mountpoint-s3"
    title: ClassVar[str] = "Mountpoint for S3"
    command_name: ClassVar[str] = "mount-s3"
    remedy: ClassVar[str] = "see https://github.com/awslabs/mountpoint-s3"
    settings: ClassVar[dict[str, str]] = {
        "--foreground": "so that the end of the process is noticed",
        "--read-only": "a dataset for training is not written to",
        "--allow-other": "as a pod would see it",
        "--force-path-style": "for stores other than AWS",
        "--metadata-ttl=indefinite": "its documentation: for a bucket whose objects do not change",
        "--maximum-throughput-gbps=100": "outside of EC2 it assumes 10",
    }

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        store = self.place.store
        keys = {"AWS_ACCESS_KEY_ID": store.access_key_id, "AWS_SECRET_ACCESS_KEY": store.secret_access_key}
        command = [str(program("mount-s3")), self.place.bucket, str(self.mount_point), *self.settings]
        command += [f"--prefix={self.place.prefix}", f"--endpoint-url={store.endpoint}", f"--region={REGION}"]
        command += [f"--cache={self.cache}"]
        if cache_limit_bytes is not None:
            command.append(f"--max-cache-size={max(1, cache_limit_bytes // MIB)}")
        self._launch(command, keys)
        return Access("directory", root=str(self.mount_point))
