"""How far the files of a volume are fetched beyond what is read: its parameters, for one file."""

from __future__ import annotations

from typing import Literal, NamedTuple

from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.weight_files import is_weight_file
from csi_driver.reading.readahead import WHOLE_FILE_BYTES, Limits

WholeFiles = Literal["none", "weights", "all"]


class Fetching(NamedTuple):
    """Of a volume."""

    read_ahead_bytes: int | None = None
    """None: as far as the daemon's settings say."""
    whole_files: WholeFiles = "none"

    def limits(self, key: str, size_bytes: int, usual: Limits) -> Limits:
        """For the reads of one file."""
        window = usual.window_chunks if self.read_ahead_bytes is None else self.read_ahead_bytes // CHUNK_BYTES
        wanted = self.whole_files == "all" or (self.whole_files == "weights" and is_weight_file(key))
        return Limits(usual.fetch_chunks, window, whole=wanted and size_bytes >= WHOLE_FILE_BYTES)


DAEMON_SETTINGS = Fetching()
"""Of a volume that says nothing."""
