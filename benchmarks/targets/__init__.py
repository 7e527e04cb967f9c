"""All ways to a dataset, by name, in the order in which they are shown."""

from __future__ import annotations

from benchmarks.targets.base import TargetBase
from benchmarks.targets.clients import Boto3, Obstore, S3fs, S3TorchConnector
from benchmarks.targets.hayloft import Hayloft, HayloftFuse, HayloftMaterialised
from benchmarks.targets.juicefs import JuiceFs, JuiceFsDefault
from benchmarks.targets.mountpoint_s3 import MountpointS3
from benchmarks.targets.plain import MountedPath, Plain
from benchmarks.targets.rclone import Rclone
from benchmarks.targets.s3fs_fuse import S3fsFuse

TARGETS: dict[str, type[TargetBase]] = {
    target.name: target
    for target in (
        Plain,
        Hayloft,
        HayloftFuse,
        HayloftMaterialised,
        JuiceFs,
        JuiceFsDefault,
        Rclone,
        S3fsFuse,
        MountpointS3,
        MountedPath,
        Boto3,
        S3fs,
        Obstore,
        S3TorchConnector,
    )
}
