"""Drafts that killed writers leave in a directory of blobs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from csi_driver.objects.blobs.directory_blobs import STALE_DRAFT_S, DirectoryBlobs


def test_stale_drafts_are_removed_and_recent_ones_stay(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.put_if_absent("volumes/a", b"kept")
    old, young = tmp_path / "volumes" / ".0123456789abcdef", tmp_path / "volumes" / ".fedcba9876543210"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * STALE_DRAFT_S
    for path in (old, tmp_path / "volumes" / "a"):
        os.utime(path, (long_ago, long_ago))
    again = DirectoryBlobs(tmp_path)
    assert not old.exists()
    assert young.exists()
    assert again.list("") == ["volumes/a"]
