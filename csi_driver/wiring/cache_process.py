"""``hayloft cache``: the data plane's composition root."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from csi_driver import telemetry
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.daemon.daemon_service import daemon_server
from csi_driver.daemon.keeper_sync import DescriptorKeeper
from csi_driver.daemon.local_data_plane import LocalDataPlane
from csi_driver.event_loop.event_loop import EventLoop
from csi_driver.mounts.keeper_protocol import KeeperClient
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.settings import CacheDaemonSettings
from csi_driver.volumes.registry import open_registry
from csi_driver.volumes.snapshots import SnapshotService
from csi_driver.wiring.lifetime import wait_for_stop
from csi_driver.wiring.metrics import serve_metrics
from csi_driver.wiring.stores import open_volume_store
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

CHECKPOINT_S = 1.0
"""How often the chunk maps of files in use are given to the index: what a kill may cost of a large object."""

KEEPER_S = 2.0
"""How often the keeper is asked whether it has all mounts: for so long after its restart a kill of this daemon costs
the mounts. A question takes it less than a millisecond."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter when another wants it. The default, 5 ms, made no difference for cold
small files; this bounds what a thread that computes for long can cost the others."""

GRACE_S = 5.0


def run(settings: CacheDaemonSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises CacheDirectoryMissing, CacheDirectoryUnusable, CacheDirectoryInUse, RegistryUnavailable, InvalidParameter.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.umask(0o022)  # object files are linked into pods of any user, whatever this process was started with
    settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        chunk_store = ChunkStore(settings.chunk_store)
        stack.callback(chunk_store.close)
        event_loop = EventLoop()
        library = ReadThroughCache(chunk_store, settings.reading, event_loop)
        stack.callback(library.close)
        event_loop.start()
        stack.callback(event_loop.close)  # after the mounts, before the fetch threads that it falls back to
        registry = open_registry(settings.registry)
        snapshots = SnapshotService(registry, open_volume_store, settings.state_directory / "manifests")
        plane = LocalDataPlane(
            settings, chunk_store, library, event_loop, snapshots, _keeper(settings), hayloft_version()
        )
        stack.callback(plane.close)
        plane.adopt()
        stack.enter_context(every(CHECKPOINT_S, "checkpoint", chunk_store.checkpoint, plane.tidy, plane.sweep))
        stack.enter_context(every(KEEPER_S, "keeper", plane.hand_over))
        server = daemon_server(settings.socket, plane)
        server.start()
        stack.callback(server.stop, GRACE_S)
        if settings.metrics_port:
            serve_metrics(settings.metrics_port, plane)
        _settle_collector()
        logger.info("ready", extra=telemetry.fields(socket=str(settings.socket)))
        wait_for_stop()


def _settle_collector() -> None:
    """What was imported stays: the collector need not look at it again and again, nor look often at a program that
    makes few cycles (1 % of the time of a cold epoch went there)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _keeper(settings: CacheDaemonSettings) -> DescriptorKeeper | None:
    """Without a keeper everything works, but mounts do not survive the daemon; that is said once."""
    if settings.keeper_socket is None:
        logger.warning("no keeper: mounts will not survive a restart of this daemon (--keeper-socket)")
        return None
    return KeeperClient(settings.keeper_socket)


@contextmanager
def every(interval_s: float, name: str, *actions: Callable[[], None]) -> Iterator[None]:
    """Does these beside the body. One that fails is logged and done again the next time, and keeps no other from
    being done."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(interval_s):
            for action in actions:
                try:
                    action()
                except Exception:
                    logger.exception("what is done every %g s failed", interval_s)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
