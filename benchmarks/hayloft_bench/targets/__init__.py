"""The targets: the ways to a dataset that are measured side by side, each with its settings and the reason for each.
``TARGETS`` holds them by name, in the order of the reports."""

from __future__ import annotations

from hayloft_bench.targets.base import TargetBase
from hayloft_bench.targets.clients import Boto3Target, ObstoreTarget, S3fsTarget, S3TorchConnectorTarget
from hayloft_bench.targets.hayloft import Hayloft, HayloftFuse, HayloftMaterialised
from hayloft_bench.targets.juicefs import JuiceFs, JuiceFsDefault
from hayloft_bench.targets.mountpoint_s3 import MountpointS3
from hayloft_bench.targets.plain import MountedPath, Plain
from hayloft_bench.targets.rclone import Rclone
from hayloft_bench.targets.s3fs_fuse import S3fsFuse

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
        Boto3Target,
        S3fsTarget,
        ObstoreTarget,
        S3TorchConnectorTarget,
    )
}
