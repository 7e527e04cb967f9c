"""Values of flags: sizes, shares of a disk, switches."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import InvalidParameter

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%\Z")

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}{ending}": 1024 ** (power + 1) for power, letter in enumerate("KMGTP") for ending in ("i", "iB")},
    **{f"{letter}{ending}": 1000 ** (power + 1) for power, letter in enumerate("KMGTP") for ending in ("", "B")},
    **{f"k{ending}": 1000 for ending in ("", "B")},
}
"""Units of Kubernetes and of disk manufacturers: Gi and GiB are 1024³ bytes, G and GB are 1000³."""

_SIZES_ALLOWED = "a size such as 500GiB, 2TB or 1048576"


@dataclass(frozen=True, slots=True)
class DiskShare:
    """A number of bytes, or a share of a file system."""

    size_bytes: int = 0
    share: float = 0.0

    def on(self, directory: Path) -> int:
        """In bytes, for the file system of the directory. Raises OSError for a share of a missing directory."""
        if not self.share:
            return self.size_bytes
        status = os.statvfs(directory)
        return int(status.f_blocks * status.f_frsize * self.share)


def parse_size(flag: str, text: str) -> int:
    """In bytes. Raises InvalidParameter."""
    found = _SIZE.match(text.strip())
    if found is None or found[2] not in _UNITS:
        raise InvalidParameter(flag, text, _SIZES_ALLOWED)
    return int(float(found[1]) * _UNITS[found[2]]) if "." in found[1] else int(found[1]) * _UNITS[found[2]]


def parse_share(flag: str, text: str) -> float:
    """``98%`` as 0.98. Raises InvalidParameter."""
    share = _SHARE.match(text.strip())
    if share is None or not 0 < float(share[1]) <= 100:
        raise InvalidParameter(flag, text, "a share above 0% and up to 100%, such as 95%")
    return float(share[1]) / 100


def parse_size_or_share(flag: str, text: str) -> DiskShare:
    """A size, or a share such as ``20%``. Raises InvalidParameter."""
    share = _SHARE.match(text.strip())
    if share is None:
        try:
            return DiskShare(size_bytes=parse_size(flag, text))
        except InvalidParameter:
            raise InvalidParameter(flag, text, f"{_SIZES_ALLOWED}, or a share such as 20%") from None
    if not 0 < float(share[1]) <= 100:
        raise InvalidParameter(flag, text, "a share above 0% and up to 100%")
    return DiskShare(share=float(share[1]) / 100)
