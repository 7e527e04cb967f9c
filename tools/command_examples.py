"""Example states of a node, for the outputs in ``docs/operations.md`` and for tests of how they are shown."""

from __future__ import annotations

from csi_driver.model import conditions
from csi_driver.volumes.data_plane import DaemonReport, VolumeReport, WarmupReport, WarmupState
from csi_driver.volumes.node_operations import (
    Entry,
    FileRows,
    Finding,
    FindingKind,
    NodeStatus,
    VolumeStatus,
)
from csi_driver.volumes.status_documents import Rates
from csi_driver.wiring.node_checks import CheckResult, Level
from csi_driver.wiring.reader_rates import NodeUse, Use, VolumeUse

MIB, GIB = 1 << 20, 1 << 30

IMAGENET = VolumeStatus(
    volume=VolumeReport(
        volume_id="hayloft-pvc-5d0c9a5e-7a0c-4a51-9f2b-0a9f5f6d3c11-8cf40c6846431c20",
        mount_point="/var/lib/kubelet/plugins/kubernetes.io/csi/csi.hayloft.dev/4c1e/globalmount",
        snapshot_id="6b3f",
        total_bytes=138 * GIB,
        cached_bytes=138 * GIB,
        file_count=1_281_167,
        reserved_bytes=150 * GIB,
    ),
    warmup=WarmupReport("hayloft-pvc-5d0c9a5e-7a0c-4a51-9f2b-0a9f5f6d3c11-8cf40c6846431c20", WarmupState.COMPLETE),
    counted=True,
    pinned=False,
    namespace="vision",
    inline=False,
    url="s3://datasets/imagenet",
    endpoint="https://s3.amazonaws.com",
    device="0:71",
    passthrough=True,
    store_wait_s=0.0,
)

TOKENS = VolumeStatus(
    volume=VolumeReport(
        volume_id="tokens",
        mount_point="/var/lib/kubelet/plugins/kubernetes.io/csi/csi.hayloft.dev/9a02/globalmount",
        snapshot_id="91aa",
        total_bytes=805 * GIB,
        cached_bytes=201 * GIB,
        file_count=1_024,
        conditions=(conditions.OBJECTS_CHANGED,),
    ),
    warmup=WarmupReport(
        "tokens",
        WarmupState.RUNNING,
        total_bytes=805 * GIB,
        total_files=1_024,
        done_bytes=201 * GIB,
        done_files=250,
        fetched_bytes=180 * GIB,
        rate_bytes=1.1 * GIB,
        eta_s=549.0,
    ),
    counted=True,
    pinned=True,
    namespace="language",
    inline=False,
    url="s3://datasets/tokens",
    endpoint="https://s3.amazonaws.com",
    device="0:84",
    passthrough=True,
    store_wait_s=4.2,
)

STATUS = NodeStatus(
    report=DaemonReport(
        version="0.1.0",
        process_id=4242,
        mounts=2,
        passthrough=True,
        cache_limit_bytes=1700 * GIB,
        cache_used_bytes=339 * GIB,
        origin_bytes=361 * GIB,
        origin_requests=1_327_410,
        resident_bytes=412 * MIB,
        warmups=1,
        warmup_bytes=301 * GIB,
        read_errors={"ESTALE": 2},
        cache_free_bytes=1_500 * GIB,
        cache_free_floor_bytes=GIB,
        cache_inodes=117_000_000,
        cache_free_inodes=115_600_000,
    ),
    conditions=(),
    volumes=(IMAGENET, TOKENS),
    cache_directory="/var/lib/hayloft/cache",
    cache_file_system="xfs",
    cache_shared_with="",
    uptime_s=11_530.0,
    opened_bytes=2_400 * GIB,
    fetched_for_readers_bytes=60 * GIB,
    unverified_files=False,
    passthrough_allowed=True,
)

RATES = Rates(1.0, 1.1 * GIB, 141.0, 3.2 * GIB)

DIRECTORY = [
    (Entry(b"train", True, 133 * GIB, None, FileRows(0, 1_231_167)), 133 * GIB),
    (Entry(b"val", True, 5 * GIB, None, FileRows(1_231_167, 1_281_167)), 1_313 * MIB),
    (Entry(b"classes.json", False, 36_864, 36_864, FileRows(1_281_167, 1_281_168)), 36_864),
]

VERIFY_TOTALS = {"checked_bytes": 201 * GIB, "checked_files": 250, "compared_files": 1_024}

FINDINGS = [
    Finding(b"shards/00017.bin", FindingKind.DAMAGED, 1),
    Finding(b"shards/00018.bin", FindingKind.CHANGED, 0, "another ETag in the store than in the snapshot"),
]

USE = NodeUse(
    2.0,
    1.1 * GIB,
    141.0,
    (
        VolumeUse("hayloft-pvc-5d0c9a5e-7a0c-4a51-9f2b-0a9f5f6d3c11-8cf40c6846431c20", 8, 0, False, 0.0, 0.0),
        VolumeUse("tokens", 2, 1, False, 1.1 * GIB, 4.2),
    ),
    (
        Use(
            "hayloft-pvc-5d0c9a5e-7a0c-4a51-9f2b-0a9f5f6d3c11-8cf40c6846431c20",
            31_107,
            "pt_data_worker",
            "vision/resnet-0",
            8,
            8,
            0,
            5e8,
            0.0,
            8.1e8,
        ),
        Use("tokens", 31_990, "python3", "language/pretrain-0", 3, 2, 4, 1e6, 9.2e7, 9.5e7),
    ),
)

DOCTOR = [
    CheckResult("daemon", Level.OK, "version 0.1.0, process 4242"),
    CheckResult(
        "kernel",
        Level.WARNING,
        "Linux 6.8.0-71-generic passes no reads through (6.9 does): the daemon serves cached files, and a read that "
        "was pending when a daemon died hangs until its process is killed",
        "Use nodes with Linux 6.9 or newer",
    ),
    CheckResult("fuse", Level.OK, "/dev/fuse can be opened"),
    CheckResult(
        "clock",
        Level.PROBLEM,
        "the store's clock is 1860 s ahead of the node's",
        "Set the node's clock (chrony, systemd-timesyncd); S3 refuses requests from 15 minutes on",
    ),
]
