"""Publishes volumes as materialised views: builds the tree, or finds it, mounts it at a target, and removes it when its
last mount is gone. Whether a view is mounted is read from the host's mount table, never counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver.cache.views import ViewFile, ViewPart, Views
from csi_driver.catalog.tree import FileRow, Tree
from csi_driver.daemon.served_mount import ServedMount
from csi_driver.model.chunk import OBJECT_FILE_MODE
from csi_driver.model.errors import OperationPending, ViewUnavailable
from csi_driver.model.snapshot import CacheScope
from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts import materialised
from csi_driver.mounts.idmap import ShownOwner
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc import deadlines
from csi_driver.volumes.data_plane import DataPlane, WarmupRequest, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm

logger = logging.getLogger(__name__)

_FILES_AT_ONCE = 512
"""Files of one part of a view: enough that opening their directory costs nothing beside them, few enough that the
threads end together."""

_LOOKED_AT_FIRST = 32
"""So many files, evenly spread, are looked for before anything is made: most volumes that are not complete are told
by them."""

_LONGEST_WAIT_S = 110.0
"""How long a call without a deadline waits for a warmup. Kubelet gives a call 2 minutes."""

_MARGIN_S = 2.0
"""So long before its deadline a call answers how far the warmup is: later, nobody might hear it."""

_SWEEP_S = 60.0


class ViewPublisher:
    """Methods may be called from any thread; the daemon's server lets only one call for a volume in at a time.

    ``_lock`` guards ``_building``, the views that a call works on, which no sweep may touch. It is held while views are
    renamed, and not while they are built, mounted or emptied.
    """

    def __init__(self, views: Views, data_plane: DataPlane) -> None:
        """``data_plane`` is asked for warmups. Puts aside what an earlier daemon left that is mounted nowhere; after a
        crash of the machine that is everything."""
        self._views = views
        self._data_plane = data_plane
        self._lock = threading.Lock()
        self._building: set[str] = set()
        self._clearing = threading.Lock()  # who empties what was put aside: one at a time
        self._next_sweep = 0.0
        views.discard_unfinished()
        self.sweep()

    def publish(self, served: ServedMount, target: Path) -> bool:
        """Ensures that the target shows a view of the volume. False: it should be published through FUSE, for its files
        are not all on the node, or it wants that, or something is mounted there already.

        With ``view: materialised`` it waits for a warmup, within the deadline of the call, and raises WarmupUnfinished
        with how far that is. Raises ViewUnavailable, OperationPending, what mounting and what a warmup raises.
        """
        present = MountTable.read().at(target)
        if present is not None:
            return self._mended(present, served.record.volume_id, target)
        if served.parameters.view == "fuse":
            return False
        if served.parameters.view == "materialised":
            self._wait_and_publish(served, target)
            return True
        try:
            return self._publish_now(served, target)
        except ViewUnavailable as error:
            logger.warning("volume %s is published through FUSE: %s", served.record.volume_id, error)
            return False

    def unpublish(self, volume_id: str, target: Path) -> None:
        """Ensures that no view of the volume is mounted at the target, and removes those that are mounted nowhere.
        Raises MountPointBusy."""
        if materialised.is_view_of(MountTable.read().at(target), volume_id):
            bind.unmount(target)
        self.sweep()

    def sweep(self) -> None:
        """Removes views that are mounted nowhere. What they hold is freed in the background."""
        self._next_sweep = time.monotonic() + _SWEEP_S
        with self._lock:
            mounted = materialised.mounted_views(MountTable.read())
            for name in self._views.names():
                if materialised.is_view_name(name) and name not in mounted and name not in self._building:
                    self._views.remove(name)
        self._clear_soon()

    def sweep_now_and_then(self) -> None:
        """For a clock that ticks every second: a target that was unmounted behind our back is noticed."""
        if time.monotonic() >= self._next_sweep:
            self.sweep()

    # -- inside --

    def _mended(self, present: MountEntry, volume_id: str, target: Path) -> bool:
        """A view that is mounted already is read-only, also if a daemon was killed before it made it so (Linux before
        5.12, see ``bind``)."""
        name = materialised.view_shown_by(present)
        if name is None or not materialised.is_view_of(present, volume_id):
            return False
        if not present.is_read_only:
            bind.bind_read_only(self._views.path(name), target)
        return True

    def _publish_now(self, served: ServedMount, target: Path) -> bool:
        owner = ShownOwner(served.parameters.uid, served.parameters.gid)
        _check_modes(served)
        name = _name(served)
        with self._working_on(name):
            if not self._views.exists(name):
                if not _seems_complete(served, self._views):
                    return False
                materialised.check_owner(self._views.directory, owner)
                if not self._build(served, name):
                    return False
            no_exec = served.parameters.mount_options.no_exec
            materialised.bind_view(self._views.path(name), target, owner, no_exec=no_exec)
        logger.info("volume %s is published at %s as a materialised view", served.record.volume_id, target)
        return True

    def _build(self, served: ServedMount, name: str) -> bool:
        started = time.monotonic()
        built = self._views.build(
            name,
            view_parts(served.tree, served.cache_scope),
            directory_mode=served.parameters.dir_mode,
            directory_mtime_ns=served.tree.created_ns,
        )
        if built:
            seconds = time.monotonic() - started
            logger.info("linked %d files in %.1f s: %s", served.tree.file_count, seconds, name)
        else:
            self._clear_soon()
        return built

    @contextmanager
    def _working_on(self, name: str) -> Iterator[None]:
        with self._lock:
            self._building.add(name)
        try:
            yield
        except BaseException:
            with self._lock:
                self._building.discard(name)
            self.sweep()
            raise
        with self._lock:
            self._building.discard(name)

    def _wait_and_publish(self, served: ServedMount, target: Path) -> None:
        give_up = time.monotonic() + deadlines.remaining_s(_LONGEST_WAIT_S) - _MARGIN_S
        while not self._publish_now(served, target):
            self._see_to_warmup(served)
            wait_until_warm(self._data_plane, served.record.volume_id, give_up - time.monotonic())
            if time.monotonic() >= give_up and not self._publish_now(served, target):
                raise OperationPending(
                    f"volume {served.record.volume_id}: all of it was on the node, and some has left the cache again; "
                    "ask again, or raise --cache-limit"
                )

    def _see_to_warmup(self, served: ServedMount) -> None:
        """Goes along with one of the whole volume that runs."""
        parameters, volume_id = served.parameters, served.record.volume_id
        report = self._data_plane.warmup(volume_id)
        if report.state is not WarmupState.RUNNING or report.include:
            bandwidth, concurrency = parameters.warmup_bandwidth_bytes, parameters.warmup_concurrency
            self._data_plane.start_warmup(WarmupRequest(volume_id, (), bandwidth, concurrency))

    def _clear_soon(self) -> None:
        threading.Thread(target=self._clear, name="view-removal", daemon=True).start()

    def _clear(self) -> None:
        with self._clearing:
            self._views.clear()


def _check_modes(served: ServedMount) -> None:
    """Links share the mode of the object file. Raises ViewUnavailable."""
    if served.parameters.file_mode != OBJECT_FILE_MODE:
        raise ViewUnavailable(
            f"fileMode {served.parameters.file_mode:04o}: files of a materialised view have mode {OBJECT_FILE_MODE:04o}"
        )


def _name(served: ServedMount) -> str:
    """Views of other bytes, or bytes fetched under other credentials, have another name."""
    parameters, tree = served.parameters, served.tree
    scope = served.cache_scope.digest("", None, 0)
    return materialised.view_name(served.record.volume_id, tree.snapshot_id, parameters.dir_mode, scope)


def _seems_complete(served: ServedMount, views: Views) -> bool:
    tree, scope = served.tree, served.cache_scope
    step = max(1, tree.file_count // _LOOKED_AT_FIRST)
    rows = (row for start in range(0, tree.file_count, step) for row in tree.rows(start, start + 1))
    return all(views.has_object(_view_file(row, scope)) for row in rows)


def view_parts(tree: Tree, scope: CacheScope) -> Iterator[ViewPart]:
    """Everything that a snapshot shows, in parts of one directory each, which hold it before what is in it."""
    for path, files in tree.directories():
        yield ViewPart(path, iter(()))
        for start in range(files.start, files.stop, _FILES_AT_ONCE):
            yield ViewPart(path, _files(tree, scope, start, min(start + _FILES_AT_ONCE, files.stop)))


def _files(tree: Tree, scope: CacheScope, start: int, stop: int) -> Iterator[ViewFile]:
    return (_view_file(row, scope) for row in tree.rows(start, stop))


def _view_file(row: FileRow, scope: CacheScope) -> ViewFile:
    return ViewFile(row.name, scope.digest(row.key, row.etag, row.size_bytes), row.size_bytes, row.mtime_ns)
