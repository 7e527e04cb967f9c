"""What a daemon notes of the warmup of a mount, so that the next one goes on with it: what was wished, and how it
ended if it did. How far it was is not noted; the cache knows."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmupRecord:
    """``ended`` None: it runs."""

    wish: WarmupRequest
    ended: WarmupReport | None = None

    def save(self, path: Path) -> None:
        """Written whole or not at all. A state directory that refuses costs the next daemon the note, no more."""
        wish, ended = self.wish, self.ended
        fields = {
            "volume_id": wish.volume_id,
            "include": wish.include,
            "bandwidth_bytes": wish.bandwidth_bytes,
            "concurrency": wish.concurrency,
            "ended": None
            if ended is None
            else {
                "state": ended.state,
                "message": ended.message,
                "total_bytes": ended.total_bytes,
                "total_files": ended.total_files,
                "done_bytes": ended.done_bytes,
                "done_files": ended.done_files,
                "failed_files": ended.failed_files,
            },
        }
        temporary = path.with_suffix(".warmup-new")
        try:
            temporary.write_text(json.dumps(fields))
            temporary.rename(path)
        except OSError as error:
            logger.warning("%s: the next daemon will not know of the warmup: %s", path.name, error.strerror)

    @classmethod
    def load(cls, path: Path) -> WarmupRecord | None:
        """None if there is none, or none that can be read."""
        try:
            fields = json.loads(path.read_text())
            include = tuple(map(str, fields["include"]))
            wish = WarmupRequest(
                str(fields["volume_id"]), include, int(fields["bandwidth_bytes"]), int(fields["concurrency"])
            )
            ended = fields["ended"]
            if ended is None:
                return cls(wish)
            state = WarmupState(ended.pop("state"))
            return cls(wish, WarmupReport(volume_id=wish.volume_id, state=state, include=include, **ended))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s: cannot be read: %s", path.name, error)
            return None
