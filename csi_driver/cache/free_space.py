"""What is free on the file system of the cache: compared with what is to stay free, and told to the operator."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from csi_driver import telemetry
from csi_driver.cache.disk import DiskSpace
from csi_driver.cache.eviction import NO_AMOUNT, Amount
from csi_driver.cache.free_floor import INODE_SHARE, FreeFloor, free_floor
from csi_driver.cache.object_directory import ObjectDirectory
from csi_driver.model.conditions import CACHE_DISK_FULL, CACHE_INODES_EXHAUSTED, Condition

logger = logging.getLogger(__name__)

_INODE_LOG_S = 3600.0


class FreeSpace:
    """The free space of one cache. Any thread may call ``missing``; the logs are for one thread."""

    def __init__(self, objects: ObjectDirectory, floor_bytes: int | None, kubelet_directory: Path | None) -> None:
        """Reads the space once. Without ``floor_bytes`` as much stays free as the disk's use demands. Raises CacheError
        and OSError."""
        self._objects = objects
        self.latest = self.read()
        """As it was at the last poll, a second ago."""
        self.floor = free_floor(objects.cache_directory.path, floor_bytes, kubelet_directory)
        self._inode_log_from = 0.0

    def read(self) -> DiskSpace:
        """Blocks on the disk. Raises CacheError."""
        return self._objects.disk.space(self._objects.cache_directory.objects)

    def missing(self, space: DiskSpace, gap: Amount, need: Amount = NO_AMOUNT) -> Amount:
        """What is to be freed so that as much as needed fits above the floor and a gap; 0 or less: it does."""
        files = 0
        if space.total_inodes:
            files = FreeFloor.inodes(space) + gap.files + need.files - space.free_inodes
        return Amount(self.floor.count_bytes + gap.count_bytes + need.count_bytes - space.free_bytes, files)

    def log_limits(self, limit_bytes: int) -> None:
        floor = self.floor
        facts = telemetry.fields(
            limit_bytes=limit_bytes, free_floor_bytes=floor.count_bytes, shared_with=floor.shared_with
        )
        if floor.is_below_kubelets:
            logger.warning(
                "the cache shares its disk with %s and may fill it until kubelet evicts pods (imagefs.available < 15 "
                "%%); leave out --free-floor, raise it to 20%%, or give the cache a disk of its own",
                floor.shared_with,
                extra=facts,
            )
        else:
            logger.info("limits of the cache", extra=facts)

    def log_inodes(self, space: DiskSpace) -> None:
        """That objects are evicted for their inodes; once an hour."""
        if time.monotonic() < self._inode_log_from:
            return
        self._inode_log_from = time.monotonic() + _INODE_LOG_S
        logger.warning(
            "the file system of the cache %s runs out of inodes before bytes: objects are evicted although there is "
            "space for more. Make it with more inodes (mkfs.ext4 -i 8192)",
            self._objects.cache_directory.path,
            extra=telemetry.fields(
                inodes=space.total_inodes, free_inodes=space.free_inodes, free_bytes=space.free_bytes
            ),
        )

    def shortage(self, missing: Amount) -> tuple[Condition, str]:
        """The condition for what is missing, and a sentence for the log."""
        directory = self._objects.cache_directory.path
        if missing.files > 0:
            return CACHE_INODES_EXHAUSTED, (
                f"the file system of the cache {directory} has no inodes left for more objects ({INODE_SHARE:.0%} of "
                "them stay free), and nothing more may be evicted; reads go straight to the store. Make the file "
                "system with more inodes (mkfs.ext4 -i 8192), or remove files of others from it"
            )
        reason = f"shared with {self.floor.shared_with}" if self.floor.shared_with else "--free-floor"
        return CACHE_DISK_FULL, (
            f"the file system of the cache {directory} has less free space than the cache leaves "
            f"({self.floor.count_bytes} bytes: {reason}), and nothing more may be evicted; reads go straight to the "
            "store. Free the disk, or give the cache one of its own"
        )
