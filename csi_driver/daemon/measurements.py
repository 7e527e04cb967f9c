"""What the daemon measures, for its metrics: more than its report, which other versions of the driver read too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.daemon.volume_read_counts import VolumeReadCounts
from csi_driver.daemon.warmup_jobs import WarmupJobs
from csi_driver.model.read_counts import NO_READS, ReadNumbers
from csi_driver.objects.mirrors.mirror_counts import PlaceNumbers
from csi_driver.objects.request_counts import RequestNumbers
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.scheduler import Lane
from csi_driver.volumes.data_plane import WarmupReport


@dataclass(frozen=True, slots=True)
class VolumeMeasurements:
    """A mounted volume that is told apart from others."""

    volume_id: str
    dataset: str
    """Its URL."""
    namespace: str
    """Empty: not known."""
    total_bytes: int
    cached_bytes: int
    warmup: WarmupReport


@dataclass(frozen=True, slots=True)
class Measurements:
    """At one moment; counts are those since the start of the daemon."""

    reads: ReadNumbers = NO_READS
    """Of all volumes, also of those that are not mounted any more."""
    volume_reads: Mapping[str, ReadNumbers] = field(default_factory=dict)
    volumes: tuple[VolumeMeasurements, ...] = ()
    mirrors: Mapping[str, PlaceNumbers] = field(default_factory=dict)
    """What was read from the places of volumes with mirrors, by ``url``, ``mirror1`` and so on."""
    requests: RequestNumbers = field(default_factory=RequestNumbers)
    written_bytes: int = 0
    not_cached_bytes: int = 0
    evicted_bytes: int = 0
    queued: Mapping[str, int] = field(default_factory=dict)
    """Work that waits for a thread or a slot, by its kind."""
    write_queue_bytes: int = 0
    held_bytes: int = 0
    adopted_mounts: int = 0
    lost_adoptions: int = 0
    """Mounts of an earlier daemon that this one could not adopt."""
    adoption_s: float = 0.0
    lost_mounts: int = 0
    keeper_reachable: bool = True


def queued(read_through_cache: ReadThroughCache) -> dict[str, int]:
    """Approximate: what is queued changes meanwhile."""
    fetcher = read_through_cache.fetcher
    demand, ahead, large = fetcher.queued(Lane.THREADS)
    small, _, small_of_warmups = fetcher.queued(Lane.LOOP)
    return {
        "fetch": demand,
        "readahead": ahead,
        "disk_read": sum(fetcher.queued(Lane.DISK)),
        "small_object": small + read_through_cache.small_object_fetcher.submitted,
        "warmup": large + small_of_warmups,
    }


def volume_measurements(
    mounts: Iterable[ServedMount], counts: VolumeReadCounts, warmups: WarmupJobs
) -> tuple[VolumeMeasurements, ...]:
    """Each volume once: the newest of its mounts."""
    found: dict[str, VolumeMeasurements] = {}
    for served in mounts:
        record = served.record
        if counts.name_of(record.mount_id) is not None:
            found[record.volume_id] = VolumeMeasurements(
                record.volume_id,
                str(served.parameters.url),
                record.namespace,
                served.tree.total_bytes,
                served.cached_bytes(),
                warmups.report(served),
            )
    return tuple(found.values())


def measurements(
    mounts: Iterable[ServedMount],
    chunk_store: ChunkStore,
    read_through_cache: ReadThroughCache,
    counts: VolumeReadCounts,
    warmups: WarmupJobs,
) -> Measurements:
    """Of the data plane; what it does not know, the caller adds."""
    reads, volume_reads = counts.numbers()
    return Measurements(
        reads=reads,
        volume_reads=volume_reads,
        volumes=volume_measurements(mounts, counts, warmups),
        written_bytes=chunk_store.written_bytes,
        not_cached_bytes=read_through_cache.not_cached_bytes,
        evicted_bytes=chunk_store.evicted_bytes,
        queued=queued(read_through_cache),
        write_queue_bytes=read_through_cache.write_back.pending_bytes,
        held_bytes=read_through_cache.held_bytes.count_bytes,
    )
