"""The record of a mount's warmup, by which the next daemon resumes it: the request, and the result if it has ended.
Progress is not recorded: the next daemon reads it from the cache."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from csi_driver import telemetry
from csi_driver.model.tracebacks import summary
from csi_driver.volumes.data_plane import WarmupReport, WarmupRequest, WarmupState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmupRecord:
    """``ended`` None: it runs."""

    request: WarmupRequest
    ended: WarmupReport | None = None

    def save(self, path: Path) -> None:
        """Atomic, by a rename. An I/O error is logged, not raised: it costs only the resumption by the next daemon."""
        request, ended = self.request, self.ended
        fields = {
            "volume_id": request.volume_id,
            "include": request.include,
            "bandwidth_bytes": request.bandwidth_bytes,
            "concurrency": request.concurrency,
            "into_memory": request.into_memory,
            "trace": request.trace,
            "start_percent": request.start_percent,
            # Not in ``ended``, of which the version before knows each field.
            "memory": [0, 0] if ended is None else [ended.memory_bytes, ended.hot_bytes],
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
            facts = telemetry.fields(volume_id=request.volume_id, path=str(path), error=error.strerror)
            logger.warning("the record of a warmup was not written; the next daemon will not resume it", extra=facts)

    @classmethod
    def load(cls, path: Path) -> WarmupRecord | None:
        """None if there is no record, or it cannot be read."""
        try:
            fields = json.loads(path.read_text())
            include = tuple(map(str, fields["include"]))
            request = WarmupRequest(
                str(fields["volume_id"]),
                include,
                int(fields["bandwidth_bytes"]),
                int(fields["concurrency"]),
                bool(fields.get("into_memory", False)),
                str(fields.get("trace", "")),
                float(fields.get("start_percent", 0.0)),
            )
            ended = fields["ended"]
            if ended is None:
                return cls(request)
            state = WarmupState(ended.pop("state"))
            memory_bytes, hot_bytes = map(int, fields.get("memory", (0, 0)))
            report = WarmupReport(volume_id=request.volume_id, state=state, include=include, **ended)
            return cls(request, replace(report, memory_bytes=memory_bytes, hot_bytes=hot_bytes))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            facts = telemetry.fields(path=str(path), error=summary(error))
            logger.warning("the record of a warmup cannot be read; the warmup is not resumed", extra=facts)
            return None
