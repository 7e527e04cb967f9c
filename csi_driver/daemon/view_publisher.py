"""Publishes volumes as materialised views: builds a view unless it exists, mounts it at a target, and removes it after
its last mount has ended, in whichever mount namespace. Whether a view is mounted is read from the mount tables, not
from a count."""

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
from csi_driver.mounts import bind_mounts
from csi_driver.mounts import materialised_views as materialised
from csi_driver.mounts.idmapped_mounts import ShownOwner
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc import callers, deadlines
from csi_driver.telemetry import fields
from csi_driver.volumes.data_plane import DataPlane, WarmupRequest, WarmupState
from csi_driver.volumes.warmup_waiting import wait_until_warm

logger = logging.getLogger(__name__)

_FILES_PER_PART = 512
"""Files of one part of a view: enough that the cost of opening their directory is negligible, few enough that the
threads end at about the same time."""

_SAMPLED_FILES = 32
"""Files, evenly spread over the snapshot, that are checked before a view is built: they reveal most volumes that are
not complete in the cache."""

_WARMUP_WAIT_S = 110.0
"""Time-out of the wait for a warmup in a call without a deadline. Kubelet's calls have one of 2 minutes."""

_PROOF_WAIT_S = 15.0
"""How long a call waits for the store's answers whether the volume may read its files, which are cached. At 20 ms each
that is enough for 10,000 files; a volume with more is published through FUSE, or waits for a warmup, which asks too."""

_ALMOST_WARM_S = 5.0
"""A volume with ``view: auto`` whose warmup is complete within this time is waited for. The pod then has plain files
for all its life, where it would have FUSE; an image takes as long to pull."""

_ESTIMATE_S = 1.0
"""So long the time that a warmup still takes may be unknown, or change much."""

_WARMUP_POLL_S = 0.05

_RESPONSE_S = 2.0
"""Reserved before the deadline of a call for the response, which reports the progress of the warmup."""

_SWEEP_INTERVAL_S = 60.0


class ViewPublisher:
    """Methods may be called from any thread; the daemon's server allows only one call for a volume at a time."""

    def __init__(self, views: Views, data_plane: DataPlane) -> None:
        """``data_plane`` starts and reports warmups. Moves the views of an earlier daemon that are not mounted to the
        trash; after a crash of the machine these are all views."""
        self._views = views
        self._data_plane = data_plane
        self._lock = threading.Lock()
        """Guards ``_in_use``. A sweep holds it from reading the mount table until the unused views are renamed, so that
        no view is removed between its build and its mount. Not held while views are built, mounted or deleted."""
        self._in_use: set[str] = set()
        """Names of the views that a call is building or mounting; a sweep leaves them alone."""
        self._clearing = threading.Lock()  # held by the one thread that empties the trash
        self._next_sweep_s = 0.0
        views.discard_unfinished()
        self.sweep()

    def publish(self, served: ServedMount, target: Path) -> bool:
        """Ensures that the target shows a view of the volume. False: it has to be published through FUSE, because not
        all files are cached or about to be by a warmup, the volume has ``view: fuse`` or, with ``view: auto``, another
        owner than root, or something else is mounted at the target.

        With ``view: materialised`` it waits for a warmup, within the deadline of the call, and raises WarmupUnfinished
        with the progress when it times out. Raises ViewUnavailable, OperationPending, and as mounting and warmups do.
        """
        present = MountTable.read().at(target)
        if present is not None:
            return self._ensure_read_only(present, served.record.volume_id, target)
        if served.parameters.view == "fuse":
            return False
        if served.parameters.view == "auto" and not _owner(served).is_our_own:
            # Another owner takes an idmapped mount. A pod with a user namespace of its own (hostUsers: false) has the
            # runtime map each of its volumes, and the kernel maps no mount twice: the pod would start as long as the
            # volume is cold, and fail when it is warm. Nothing tells the driver which pod is one of these.
            return False
        if served.parameters.view == "materialised":
            self._wait_and_publish(served, target)
            return True
        try:
            return self._publish_now(served, target) or (
                self._becomes_warm(served) and self._publish_now(served, target)
            )
        except ViewUnavailable as error:
            facts = fields(volume_id=served.record.volume_id, target_path=str(target), error=str(error))
            logger.warning("no materialised view; the volume is published through FUSE", extra=facts)
            return False

    def unpublish(self, volume_id: str, target: Path) -> None:
        """Ensures that no view of the volume is mounted at the target, and removes views that are mounted nowhere.
        Raises MountPointBusy."""
        if materialised.is_view_of(MountTable.read().at(target), volume_id):
            bind_mounts.unmount(target)
        self.sweep()

    def sweep(self) -> None:
        """Removes views that are mounted nowhere. Their files are deleted in the background."""
        self._next_sweep_s = time.monotonic() + _SWEEP_INTERVAL_S
        with self._lock:
            unused = {name for name in self._views.names() if materialised.is_view_name(name)} - self._in_use
            if unused:
                # A view that leaves _in_use was mounted before, so this reading of the tables, under the lock, has it.
                unused -= materialised.views_mounted_anywhere()
            for name in unused:
                self._views.remove(name)
        self._clear_in_background()

    def sweep_if_due(self) -> None:
        """Called about every second: finds views whose targets were unmounted without a call to ``unpublish``."""
        if time.monotonic() >= self._next_sweep_s:
            self.sweep()

    # -- internal --

    def _ensure_read_only(self, present: MountEntry, volume_id: str, target: Path) -> bool:
        """False if the mount is no view of the volume. Before Linux 5.12 a daemon that was killed may have left a view
        mounted read-write (see ``bind_mounts``)."""
        name = materialised.view_shown_by(present)
        if name is None or not materialised.is_view_of(present, volume_id):
            return False
        if not present.is_read_only:
            bind_mounts.bind_read_only(self._views.path(name).resolve(), target)
        return True

    def _publish_now(self, served: ServedMount, target: Path) -> bool:
        owner = _owner(served)
        _check_modes(served)
        materialised.check_labels(self._views.directory)
        name = _view_name(served)
        with self._use(name):  # before the check: a sweep must not remove a view that was found to exist
            exists = self._views.exists(name)
            if not exists and not _seems_complete(served, self._views):
                return False
            # Also for a view that exists: its files may have been proven too long ago for another pod.
            if not served.filesystem.prove_all(time.monotonic() + _PROOF_WAIT_S):
                return False
            if not exists:
                materialised.check_owner(self._views.directory, owner)  # before a build that may take seconds
                if not self._build(served, name):
                    return False
            no_exec = served.parameters.mount_options.no_exec
            materialised.bind_view(self._views.path(name), target, owner, no_exec=no_exec)
        facts = fields(volume_id=served.record.volume_id, target_path=str(target), view=name)
        logger.info("volume published as a materialised view", extra=facts)
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
            facts = fields(
                volume_id=served.record.volume_id,
                view=name,
                files=served.tree.file_count,
                seconds=f"{time.monotonic() - started:.1f}",
            )
            logger.info("built a materialised view", extra=facts)
        else:
            self._clear_in_background()
        return built

    @contextmanager
    def _use(self, name: str) -> Iterator[None]:
        """No sweep removes the view during the body. When the body raises, a sweep removes the view if it is mounted
        nowhere; without an error it is mounted by then."""
        with self._lock:
            self._in_use.add(name)
        try:
            yield
        except BaseException:
            with self._lock:
                self._in_use.discard(name)
            self.sweep()
            raise
        with self._lock:
            self._in_use.discard(name)

    def _wait_and_publish(self, served: ServedMount, target: Path) -> None:
        deadline_s = time.monotonic() + deadlines.remaining_s(_WARMUP_WAIT_S) - _RESPONSE_S
        while not self._publish_now(served, target):
            self._ensure_warmup(served)
            wait_until_warm(self._data_plane, served.record.volume_id, deadline_s - time.monotonic())
            if time.monotonic() >= deadline_s and not self._publish_now(served, target):
                raise OperationPending(
                    f"volume {served.record.volume_id}: all of it was cached, and a part was evicted again; "
                    "retry, or raise --cache-limit"
                )

    def _becomes_warm(self, served: ServedMount) -> bool:
        """Waits for a warmup of the complete volume that is about to end. False: there is none, or it takes longer.
        Raises Interrupted when the caller is gone."""
        caller = callers.current()
        began_s, waits = time.monotonic(), False
        while True:
            report = self._data_plane.warmup(served.record.volume_id)
            waited_s = time.monotonic() - began_s
            left_s = min(_ALMOST_WARM_S - waited_s, deadlines.remaining_s(_WARMUP_WAIT_S) - _RESPONSE_S)
            if report.state is not WarmupState.RUNNING or report.include:
                return waits and report.state is WarmupState.COMPLETE
            if left_s <= 0 or (waited_s > _ESTIMATE_S and (report.eta_s is None or report.eta_s > left_s)):
                return False
            waits = True
            time.sleep(_WARMUP_POLL_S)
            callers.require(caller)

    def _ensure_warmup(self, served: ServedMount) -> None:
        """Starts a warmup of the complete volume unless one is running."""
        parameters, volume_id = served.parameters, served.record.volume_id
        report = self._data_plane.warmup(volume_id)
        if report.state is not WarmupState.RUNNING or report.include:
            bandwidth, concurrency = parameters.warmup_bandwidth_bytes, parameters.warmup_concurrency
            self._data_plane.start_warmup(WarmupRequest(volume_id, (), bandwidth, concurrency))

    def _clear_in_background(self) -> None:
        threading.Thread(target=self._clear, name="view-removal", daemon=True).start()

    def _clear(self) -> None:
        with self._clearing:
            self._views.clear()


def _owner(served: ServedMount) -> ShownOwner:
    """The group of a pod (``fsGroup``) matters only where others cannot enter directories: files of a view are readable
    by all."""
    parameters, group = served.parameters, 0
    if parameters.dir_mode & 0o005 != 0o005:
        group = served.record.mount_group
    return ShownOwner(parameters.uid, parameters.gid or group)


def _check_modes(served: ServedMount) -> None:
    """Raises ViewUnavailable for another mode than that of the object files, which hard links share."""
    if served.parameters.file_mode != OBJECT_FILE_MODE:
        raise ViewUnavailable(
            f"fileMode {served.parameters.file_mode:04o}: files of a materialised view have mode {OBJECT_FILE_MODE:04o}"
        )


def _view_name(served: ServedMount) -> str:
    """Different for different bytes, and for another credential that reads them."""
    parameters, tree = served.parameters, served.tree
    scope = served.cache_scope.digest(served.credential.own.hex(), None, 0)
    return materialised.view_name(served.record.volume_id, tree.snapshot_id, parameters.dir_mode, scope)


def _seems_complete(served: ServedMount, views: Views) -> bool:
    tree, scope = served.tree, served.cache_scope
    step = max(1, tree.file_count // _SAMPLED_FILES)
    rows = (row for start in range(0, tree.file_count, step) for row in tree.rows(start, start + 1))
    return all(views.has_object(_view_file(row, scope)) for row in rows)


def view_parts(tree: Tree, scope: CacheScope) -> Iterator[ViewPart]:
    """All files and directories of a snapshot, in parts of one directory each; a directory comes before its content."""
    for path, files in tree.directories():
        yield ViewPart(path, iter(()))
        for start in range(files.start, files.stop, _FILES_PER_PART):
            yield ViewPart(path, _files(tree, scope, start, min(start + _FILES_PER_PART, files.stop)))


def _files(tree: Tree, scope: CacheScope, start: int, stop: int) -> Iterator[ViewFile]:
    return (_view_file(row, scope) for row in tree.rows(start, stop))


def _view_file(row: FileRow, scope: CacheScope) -> ViewFile:
    digest = scope.digest(row.key, row.etag, row.size_bytes, row.mtime_ns)
    return ViewFile(row.name, digest, row.size_bytes, row.mtime_ns)
