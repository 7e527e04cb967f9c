"""``hayloft cache``: the data plane's composition root."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from csi_driver import telemetry
from csi_driver.cache.cache_directory import is_in_use, require_suitable
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.private_files import close_own_directory, close_to_others
from csi_driver.catalog.arrow_alone import use_arrow_alone
from csi_driver.daemon.daemon_service import daemon_server
from csi_driver.daemon.keeper_sync import DescriptorKeeper
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.daemon.local_node_operations import LocalNodeOperations
from csi_driver.daemon.operations_service import operations_service
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.fuse.request_timeout import RequestTimeouts
from csi_driver.mounts.keeper_protocol import KeeperClient
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.adoption_imports import import_for_mounts, importing_for_mounts
from csi_driver.wiring.available_memory import available_bytes
from csi_driver.wiring.core_files import keep_no_core_files
from csi_driver.wiring.descriptor_limit import warn_of_few_descriptors
from csi_driver.wiring.health_pages import serving_health
from csi_driver.wiring.listing_processes import ListingProcesses
from csi_driver.wiring.liveness import DaemonHealth, Stage
from csi_driver.wiring.metrics import serving_metrics
from csi_driver.wiring.page_server import listen
from csi_driver.wiring.registry_check import check_registry
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.span_export import exporting_spans
from csi_driver.wiring.supervisor import earlier_ends, report_serving
from csi_driver.wiring.tier_members import opened_tier
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

CHECKPOINT_S = 1.0
"""Interval at which the chunk maps of files in use are written to the index: a kill costs at most the chunks of this
time."""

KEEPER_S = 2.0
"""Interval at which the keeper is polled for missing mounts: if this daemon dies within this time after a restart of
the keeper, the mounts are lost. A poll takes less than a millisecond."""

SWITCH_INTERVAL_S = 0.0005
"""Longest time that a thread holds the interpreter lock while another waits for it. Bounds the delay that a thread with
a long computation causes; for cold small files the default, 5 ms, was equally fast."""

GRACE_S = 5.0

HANDOVER_S = 0.5
"""With a successor that waits, this daemon ends so long after its last answer to a reader, in order or not: what a kill
leaves behind is complete, and readers wait for the successor."""

_STATE = ("mounts", "manifests")
"""What a state directory holds."""


def run(settings: CacheDaemonSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises CacheDirectoryMissing, CacheDirectoryUnusable, CacheDirectoryInUse, RegistryUnavailable, InvalidParameter.
    """
    keep_no_core_files()
    use_arrow_alone()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    warn_of_few_descriptors()
    require_suitable(settings.chunk_store.directory)  # first: the state directory may be in it
    os.umask(0o022)  # not the inherited one: object files are linked into pods of any user
    settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_own_directory(settings.state_directory, _STATE)
    for name in _STATE:
        close_to_others(settings.state_directory / name)
    # The order of shutdown, the reverse of this one, matters: the server stops first, then the periodic jobs, then the
    # data plane, which still uses the cache.
    with ExitStack() as stack:
        lister = ListingProcesses(settings.listing, settings.volume_policy)
        stack.callback(lister.close)
        lister.start()  # first: it forks, while this process has one thread
        stack.enter_context(exporting_spans("cache", os.environ))
        health = DaemonHealth()
        stack.enter_context(serving_health(settings.health_port, health.require_alive, health.require_ready))
        if settings.chunk_store.standby and is_in_use(settings.chunk_store.directory):
            health.stage = Stage.STANDBY
        with importing_for_mounts(settings.state_directory):
            # In standby it waits here for the end of another daemon.
            chunk_store = ChunkStore(settings.chunk_store, memory_bytes=available_bytes())
        stack.callback(chunk_store.close)
        # After the wait: on the host's network the port is the other daemon's until then.
        metrics = listen(settings.metrics_address, settings.metrics_port) if settings.metrics_port else None
        web = _web_listener(settings.web_port)
        event_loop = EventLoop()
        read_through_cache = ReadThroughCache(chunk_store, settings.reading, event_loop)
        stack.callback(read_through_cache.close)
        event_loop.start()
        stack.callback(event_loop.close)  # after the mounts, before the fetch threads that it falls back to
        registry = open_registry(settings.registry)
        # Said in the log alone: what is cached is served nevertheless, and writes to the registry are refused.
        check_registry(registry, settings.registry.location, wait_s=0.0)
        snapshots = SnapshotService(registry, lister, settings.state_directory / "manifests")
        tier = stack.enter_context(opened_tier(settings.tier))
        plane = LocalDataPlane(
            settings,
            chunk_store,
            read_through_cache,
            event_loop,
            snapshots,
            _keeper(settings),
            hayloft_version(),
            available_memory=available_bytes,
            tier=tier,
        )
        stack.callback(plane.close)
        stack.callback(_hand_over, chunk_store)
        plane.adopt()
        stack.enter_context(every(CHECKPOINT_S, "checkpoint", chunk_store.checkpoint, plane.tidy, plane.sweep))
        stack.enter_context(every(KEEPER_S, "keeper", plane.resync_keeper))
        calls = CallCounts()
        operations = LocalNodeOperations(
            plane, chunk_store, read_through_cache, passthrough_allowed=settings.fuse.passthrough
        )
        server = daemon_server(settings.socket, plane, operations_service(operations), counts=calls)
        server.start()
        stack.callback(server.stop, GRACE_S)
        if metrics is not None:
            stack.enter_context(
                serving_metrics(metrics, plane, earlier_ends(os.environ), plane.measurements, calls, tier)
            )
        if web is not None:
            from csi_driver.wiring.web_page import serving_web

            stack.enter_context(serving_web(web, operations, lambda: plane.measurements().reads))
        if warning := RequestTimeouts.read().warning():
            logger.warning("%s", warning)
        if settings.health_port:
            stack.enter_context(health.watching(event_loop, plane.probe))
        health.stage = Stage.SERVING
        _tune_garbage_collector()
        logger.info("ready", extra=telemetry.fields(socket=str(settings.socket)))
        report_serving(os.environ)
        wait_for_stop()


def prepare(settings: CacheDaemonSettings) -> None:
    """Imports what a daemon needs for the mounts that it will adopt, for a process that is then forked."""
    import_for_mounts(settings.state_directory)


def _web_listener(port: int) -> socket.socket | None:
    """None: no page is served, and what it needs is not imported. Raises InvalidParameter."""
    if not port:
        return None
    from csi_driver.wiring.web_page import listen_locally

    return listen_locally(port)


def _hand_over(chunk_store: ChunkStore) -> None:
    """Called when this daemon stops, before it stops to serve mounts. Bounds the time that readers wait for a successor
    by the end of this process, which releases the cache directory."""
    if chunk_store.has_successor:
        logger.info("another daemon takes over", extra=telemetry.fields(within_s=HANDOVER_S))
        watchdog = threading.Timer(HANDOVER_S, os._exit, (0,))
        watchdog.daemon = True
        watchdog.start()


def _tune_garbage_collector() -> None:
    """Excludes imported objects, which stay for ever, and collects rarely, since this program makes few reference
    cycles. With the defaults a cold epoch spent 1 % of its time in the collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _keeper(settings: CacheDaemonSettings) -> DescriptorKeeper | None:
    if settings.keeper_socket is None:
        logger.warning("no keeper is configured (--keeper-socket): mounts will not survive a restart of this daemon")
        return None
    return KeeperClient(settings.keeper_socket)


@contextmanager
def every(interval_s: float, name: str, *actions: Callable[[], None]) -> Iterator[None]:
    """Calls the actions periodically on a thread during the body. One that fails is logged and retried at the next
    interval; the others are called all the same."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(interval_s):
            for action in actions:
                try:
                    action()
                except BaseException:
                    facts = telemetry.fields(thread=name, action=getattr(action, "__name__", str(action)))
                    logger.exception(
                        "unexpected error in a periodic job; it is retried in %g s", interval_s, extra=facts
                    )

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
