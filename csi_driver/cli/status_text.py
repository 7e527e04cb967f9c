"""The state of a node as text: ``hayloft status`` and ``hayloft volumes``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from csi_driver.cli.text_tables import Column, duration, labelled, percent, rate, table
from csi_driver.model.conditions import Severity
from csi_driver.volumes.data_plane import WarmupReport, WarmupState
from csi_driver.volumes.node_operations import NodeStatus, VolumeStatus
from csi_driver.volumes.status_documents import Rates, all_conditions
from csi_driver.volumes.volume_ids import readable_part
from csi_driver.volumes.warmup_waiting import human_size

SLOW_S = 3.0
"""A request to a store that has waited for a byte for so long is shown: stores that work send one within a second."""


def status_lines(status: NodeStatus, rates: Rates | None, width: int) -> list[str]:
    """For a terminal of this width; 0: any."""
    report = status.report
    title = f"hayloft {report.version}, process {report.process_id}, up {duration(status.uptime_s)}: {_verdict(status)}"
    lines = labelled("", title, width, 0)
    for label, text in _facts(status, rates):
        lines += labelled(label, text, width)
    for volume_id, condition in all_conditions(status):
        where = f"{readable_part(volume_id)}: " if volume_id else ""
        lines += labelled(_LABEL_OF[condition.severity], f"{where}{condition.message} ({condition.reason})", width)
    if not status.volumes:
        return [*lines, "", "No volume is mounted on this node."]
    return [*lines, "", *_short_table(status.volumes, width)]


_LABEL_OF = {Severity.DEGRADED: "degraded", Severity.INACCESSIBLE: "failed", Severity.DATA_LOSS: "data loss"}


def _verdict(status: NodeStatus) -> str:
    found = all_conditions(status)
    if not found:
        return "nothing is wrong"
    worst = next(severity for severity in reversed(Severity) if any(one.severity is severity for _, one in found))
    count = len(found)
    return f"{count} condition{'s' if count > 1 else ''}, the worst: {worst}"


def _facts(status: NodeStatus, rates: Rates | None) -> Iterable[tuple[str, str]]:
    report = status.report
    yield "cache", f"{status.cache_directory} ({status.cache_file_system})"
    used = percent(report.cache_used_bytes, report.cache_limit_bytes)
    yield (
        "",
        f"{human_size(report.cache_used_bytes)} of {human_size(report.cache_limit_bytes)} used, {used}; "
        f"{report.cache_evicted_objects:,} objects evicted",
    )
    shared = f", shared with {status.cache_shared_with}" if status.cache_shared_with else ""
    state = "" if report.cache_disk_in_use else "; it keeps failing and is not used"
    yield (
        "disk",
        f"{human_size(report.cache_free_bytes)} free, of which {human_size(report.cache_free_floor_bytes)} stay free"
        f"{shared}{state}",
    )
    if report.cache_inodes:
        left = percent(report.cache_free_inodes, report.cache_inodes)
        yield "", f"{report.cache_free_inodes:,} of {report.cache_inodes:,} inodes free, {left}"
    yield "hits", _hits(status)
    now = "" if rates is None else f"; now {rate(rates.fetched_bytes)}, {rates.requests:.0f} requests/s"
    yield "fetched", f"{human_size(report.origin_bytes)} in {report.origin_requests:,} requests{now}"
    yield "store", _store(status.volumes)
    running = f"{report.warmups} running, " if report.warmups else ""
    yield "warmups", f"{running}{human_size(report.warmup_bytes)} fetched"
    if report.read_errors:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(report.read_errors.items()))
        yield "errors", f"opens and reads that failed: {counts}"
    damage = [
        f"{count:,} {what}"
        for count, what in (
            (report.cache_bad_chunks, "damaged chunks found in the cache, and dropped"),
            (report.checksum_mismatches, "objects received with a wrong checksum"),
            (report.cache_disk_failures, "failures of the cache disk"),
        )
        if count
    ]
    if damage:
        yield "integrity", "; ".join(damage)
    if status.unverified_files:
        yield "recovery", "files of before a crash of the machine are still to be verified"
    if not status.passthrough_allowed:
        yield "reads", "served by the daemon: it was started with --no-passthrough"


def _hits(status: NodeStatus) -> str:
    if status.hit_ratio is None:
        return "no file was opened yet"
    share = percent(
        status.opened_bytes - min(status.opened_bytes, status.fetched_for_readers_bytes), status.opened_bytes
    )
    return (
        f"{share} of {human_size(status.opened_bytes)} opened; {human_size(status.fetched_for_readers_bytes)} "
        "fetched for readers"
    )


def _store(volumes: Sequence[VolumeStatus]) -> str:
    waits = [one for one in volumes if one.store_wait_s >= SLOW_S]
    if not waits:
        return "no request waits"
    longest = max(waits, key=lambda one: one.store_wait_s)
    name = readable_part(longest.volume.volume_id)
    return f"a request of {name} to {longest.endpoint} waits for {longest.store_wait_s:.0f} s"


def _short_table(volumes: Iterable[VolumeStatus], width: int) -> list[str]:
    columns = (
        Column("VOLUME", shortened=True),
        Column("CACHED", right=True),
        Column("OF", right=True),
        Column("FILES", right=True, optional=1),
        Column("WARMUP"),
        Column("STATE", shortened=True),
    )
    rows = (
        (
            readable_part(one.volume.volume_id),
            _cached_share(one),
            human_size(one.volume.total_bytes),
            f"{one.volume.file_count:,}",
            _warmup(one.warmup),
            _state(one),
        )
        for one in volumes
    )
    return table(columns, rows, width)


def volume_lines(volumes: Sequence[VolumeStatus], width: int) -> list[str]:
    """The table of ``hayloft volumes``."""
    if not volumes:
        return ["No volume is mounted on this node."]
    columns = (
        Column("VOLUME", shortened=True),
        Column("NAMESPACE", shortened=True, optional=1),
        Column("CACHED", right=True),
        Column("BYTES", right=True, optional=4),
        Column("OF", right=True),
        Column("FILES", right=True, optional=2),
        Column("RESERVED", right=True, optional=3),
        Column("STATE", shortened=True),
        Column("DATASET", shortened=True),
    )
    return table(columns, map(_volume_row, volumes), width)


def _volume_row(one: VolumeStatus) -> tuple[str, ...]:
    volume = one.volume
    reserved = volume.total_bytes if one.pinned else volume.reserved_bytes
    return (
        readable_part(volume.volume_id),
        one.namespace or "-",
        _cached_share(one),
        human_size(volume.cached_bytes) if one.counted else "-",
        human_size(volume.total_bytes),
        f"{volume.file_count:,}",
        human_size(reserved) if reserved else "-",
        _state(one),
        one.url,
    )


def _cached_share(one: VolumeStatus) -> str:
    return percent(one.volume.cached_bytes, one.volume.total_bytes) if one.counted else "counting"


def _state(one: VolumeStatus) -> str:
    """What an operator has to know of it first."""
    words = [condition.reason for condition in one.volume.conditions] or ["ok"]
    return ", ".join([*words, "pinned"] if one.pinned else words)


def _warmup(warmup: WarmupReport) -> str:
    if warmup.state is WarmupState.NONE:
        return "-"
    if warmup.state is not WarmupState.RUNNING or not warmup.total_files:
        return str(warmup.state)
    left = "" if warmup.eta_s is None else f", {duration(warmup.eta_s, most_units=1)}"
    return f"{percent(warmup.done_bytes, warmup.total_bytes)}{left}"
