"""Every metric that the processes of Hayloft export, by the conventions of Prometheus: base units, ``_total`` for what
only grows. ``docs/monitoring.md`` has the table that is made of it; alerts and dashboard may use no other names.

Labels have a bounded number of values. Volumes are the exception that needs a bound of its own (``--metrics-volumes``).
A metric that is renamed breaks the dashboards of others: it is a line of the changelog.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]


class MetricSpec(NamedTuple):
    """A family of metrics."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_PATHS = "`memory`: at once; `disk`: from the cache disk; `store`: after a fetch"

OF_DAEMON = (
    MetricSpec("hayloft_mounts", "gauge", "FUSE mounts that the daemon serves."),
    MetricSpec(
        "hayloft_lost_mounts", "gauge", "Mounts that died, until their volumes are published again or unstaged."
    ),
    MetricSpec("hayloft_keeper_reachable", "gauge", "0 while the keeper does not answer."),
    # reads
    MetricSpec("hayloft_reads_total", "counter", f"Reads that the daemon answered ({_PATHS}).", ("path",)),
    MetricSpec("hayloft_read_bytes_total", "counter", "Their bytes.", ("path",)),
    MetricSpec(
        "hayloft_opens_total",
        "counter",
        "Opens (`passthrough`: the kernel reads the file by itself; `served`: the daemon answers its reads).",
        ("mode",),
    ),
    MetricSpec(
        "hayloft_passthrough_bytes_total",
        "counter",
        "Sizes of the files of passthrough opens, each counted completely: what is read of them is not seen.",
    ),
    MetricSpec(
        "hayloft_wait_seconds",
        "histogram",
        "Reads that waited for the cache disk (`disk`) or the store (`store`), and opens that waited for it (`open`).",
        ("reason",),
    ),
    MetricSpec("hayloft_read_errors_total", "counter", "Opens and reads of files that failed.", ("errno",)),
    MetricSpec(
        "hayloft_saved_bytes",
        "gauge",
        "Bytes that readers got (passthrough as above) less those received from stores, of all volumes since the "
        "start; negative while more was fetched than read.",
    ),
    # stores
    MetricSpec("hayloft_origin_bytes_total", "counter", "Bytes received from object stores and the cluster's cache."),
    MetricSpec(
        "hayloft_origin_requests_total",
        "counter",
        "Requests to object stores, without retries, listings and checksums.",
    ),
    MetricSpec(
        "hayloft_origin_results_total",
        "counter",
        "Ends of requests, each try counted: `ok`, `abandoned`, or the error.",
        ("result",),
    ),
    MetricSpec("hayloft_origin_retries_total", "counter", "Tries that followed one that had failed."),
    MetricSpec(
        "hayloft_origin_response_seconds", "histogram", "From the start of a request to the first bytes of its answer."
    ),
    # volumes with mirrors: `url`, `mirror1` to `mirror8`
    MetricSpec(
        "hayloft_mirror_reads_total",
        "counter",
        "Reads of volumes with mirrors that a place has answered (`url`, `mirror1` and so on).",
        ("place",),
    ),
    MetricSpec("hayloft_mirror_bytes_total", "counter", "Bytes received from it.", ("place",)),
    MetricSpec(
        "hayloft_mirror_failovers_total", "counter", "How often it began to fail, and others were read.", ("place",)
    ),
    MetricSpec(
        "hayloft_mirror_refused_objects_total",
        "counter",
        "Objects found missing there, or of another version; each time that one is looked up.",
        ("place",),
    ),
    # cache
    MetricSpec("hayloft_cache_used_bytes", "gauge", "Bytes of objects in the cache."),
    MetricSpec("hayloft_cache_limit_bytes", "gauge", "Limit of the cache in bytes."),
    MetricSpec("hayloft_cache_written_bytes_total", "counter", "Bytes of objects written to the cache."),
    MetricSpec(
        "hayloft_cache_skipped_bytes_total",
        "counter",
        "Bytes received and not written: the disk was slower than the store, refused them, or the object is too large.",
    ),
    MetricSpec("hayloft_cache_evicted_objects_total", "counter", "Objects evicted."),
    MetricSpec("hayloft_cache_evicted_bytes_total", "counter", "Their bytes in the cache."),
    MetricSpec("hayloft_cache_free_bytes", "gauge", "Free bytes of the file system of the cache."),
    MetricSpec("hayloft_cache_free_floor_bytes", "gauge", "Bytes of it that stay free."),
    MetricSpec("hayloft_cache_inodes", "gauge", "Inodes of the file system of the cache, if it has a fixed number."),
    MetricSpec("hayloft_cache_free_inodes", "gauge", "Free inodes of it."),
    MetricSpec("hayloft_cache_free_floor_inodes", "gauge", "Inodes of it that stay free."),
    MetricSpec("hayloft_cache_disk_in_use", "gauge", "0 while the cache disk keeps failing."),
    MetricSpec("hayloft_cache_disk_failures_total", "counter", "Failed reads, writes and checks of object files."),
    MetricSpec("hayloft_cache_bad_chunks_total", "counter", "Chunks on the cache disk with a wrong checksum."),
    MetricSpec("hayloft_scrubbed_bytes_total", "counter", "Bytes that the scrubber has read."),
    MetricSpec("hayloft_checksum_mismatches_total", "counter", "Objects received with a wrong checksum."),
    # queues
    MetricSpec(
        "hayloft_queued_jobs",
        "gauge",
        "Work that waits for a slot: `fetch`, for a reader, `readahead`, `disk_read`, `small_object`, `warmup`.",
        ("queue",),
    ),
    MetricSpec("hayloft_write_queue_bytes", "gauge", "Bytes in memory that wait for the cache disk (`--write-queue`)."),
    MetricSpec(
        "hayloft_read_held_bytes",
        "gauge",
        "Bytes in memory that wait for a reader of a file that `wholeFiles` fetches.",
    ),
    # the cluster's cache
    MetricSpec(
        "hayloft_tier_requests_total",
        "counter",
        "Requests for which the cluster's cache was considered (`hit`, `miss`, `failure`, `bypass`).",
        ("result",),
    ),
    MetricSpec("hayloft_tier_bytes_total", "counter", "Bytes received from the cluster's cache."),
    MetricSpec("hayloft_tier_replicas", "gauge", "Replicas of the cluster's cache that this node may ask."),
    MetricSpec("hayloft_tier_replicas_left_alone", "gauge", "Of these, replicas that have failed a moment ago."),
    # warmups and adoption
    MetricSpec("hayloft_warmups", "gauge", "Running warmups."),
    MetricSpec("hayloft_warmup_bytes_total", "counter", "Bytes that warmups fetched."),
    MetricSpec(
        "hayloft_warmup_memory_read_bytes_total",
        "counter",
        "Bytes that warmups read from the cache disk into the page cache.",
    ),
    MetricSpec(
        "hayloft_warmup_hot_bytes",
        "gauge",
        "Bytes in the page cache for warmups of mounted volumes, as counted last.",
    ),
    MetricSpec(
        "hayloft_adopted_mounts",
        "gauge",
        "Mounts of an earlier daemon that this one found (`adopted`, or `lost`).",
        ("result",),
    ),
    MetricSpec("hayloft_adoption_seconds", "gauge", "How long that took."),
    MetricSpec("hayloft_daemon_restarts_total", "counter", "Restarts of the daemon by its supervisor.", ("cause",)),
    # volumes
    MetricSpec("hayloft_volume_info", "gauge", "1; names the dataset of a volume.", ("volume", "dataset", "namespace")),
    MetricSpec("hayloft_volume_bytes", "gauge", "Size of the dataset of a volume.", ("volume",)),
    MetricSpec(
        "hayloft_volume_cached_bytes",
        "gauge",
        "Bytes of it in the cache; of more than 1,000 files some minutes old.",
        ("volume",),
    ),
    MetricSpec("hayloft_volume_read_bytes_total", "counter", f"Bytes of reads ({_PATHS}).", ("volume", "path")),
    MetricSpec(
        "hayloft_volume_passthrough_bytes_total", "counter", "As `hayloft_passthrough_bytes_total`.", ("volume",)
    ),
    MetricSpec("hayloft_volume_origin_bytes_total", "counter", "Bytes received from the store.", ("volume",)),
    MetricSpec(
        "hayloft_volume_stall_seconds_total",
        "counter",
        "Time that reads and opens waited for the store, added up over readers, with those that wait now.",
        ("volume",),
    ),
    MetricSpec(
        "hayloft_volume_warmup_bytes",
        "gauge",
        "Of the last warmup: bytes to be cached (`total`), and that are cached (`done`).",
        ("volume", "part"),
    ),
    MetricSpec(
        "hayloft_volume_warmup_state",
        "gauge",
        "1 for the state of the last warmup: `running`, `complete`, `full`, `failed`, `cancelled`.",
        ("volume", "state"),
    ),
    # process
    MetricSpec("hayloft_resident_bytes", "gauge", "Resident memory of the daemon."),
    MetricSpec("hayloft_container_memory_bytes", "gauge", "Memory charged to the daemon's control group.", ("kind",)),
    MetricSpec("hayloft_container_memory_limit_bytes", "gauge", "Limit of the daemon's control group, if it has one."),
    MetricSpec("hayloft_daemon_calls_total", "counter", "Calls of the daemon's socket.", ("method", "code")),
    MetricSpec("hayloft_daemon_call_seconds", "histogram", "How long they took.", ("method",)),
)
"""Of ``--metrics-port`` of the cache daemon."""

OF_CSI = (
    MetricSpec("hayloft_csi_calls_total", "counter", "Calls of the CSI socket.", ("method", "code")),
    MetricSpec("hayloft_csi_call_seconds", "histogram", "How long they took.", ("method",)),
)
"""Of ``--health-port`` of node plugin and controller."""

OF_PROCESS = (
    MetricSpec("process_cpu_seconds_total", "counter", "Processor time."),
    MetricSpec("process_max_fds", "gauge", "Limit of open files."),
    MetricSpec("process_open_fds", "gauge", "Open files."),
    MetricSpec("process_resident_memory_bytes", "gauge", "Resident memory."),
    MetricSpec("process_start_time_seconds", "gauge", "Start, in seconds since 1970."),
    MetricSpec("process_virtual_memory_bytes", "gauge", "Virtual memory."),
)
"""Of all three, as of every process that Prometheus knows."""

ALL = (*OF_DAEMON, *OF_CSI, *OF_PROCESS)
