"""Events at pods about their volumes: the progress and the end of a warmup, and what is wrong with reads.

Errors of calls are not among them: kubelet makes an event of the status of each call that fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from csi_driver.kubernetes.events import Event, EventRecorder, ObjectReference
from csi_driver.model.errors import HayloftError
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.data_plane import DataPlane, VolumeReport, WarmupReport, WarmupState
from csi_driver.volumes.warmup_waiting import human_size, progress_text

_POD = "csi.storage.k8s.io/pod."
"""Beginning of the facts about the pod that kubelet adds to a volume context (``podInfoOnMount``)."""

POLL_S = 15.0
_REPORT_S = 60.0
"""Interval at which the daemon is asked for the report of a volume, which may have it count cached files; kubelet asks
as often."""
_PROGRESS_S = 60.0
"""Interval of the events about one running warmup. Their texts differ, so each is an object of Kubernetes."""

_MOST_VOLUMES = 1024


@dataclass(slots=True)
class _Published:
    """A volume at one target path."""

    pod: ObjectReference
    volume_id: str
    warmup: WarmupState | None = None
    """As last seen; None: not looked at yet."""
    progress_due_s: float = 0.0
    report_due_s: float = 0.0
    told: set[tuple[str, str]] = field(default_factory=set)
    """What was said of the volume and still holds: it is said once, as long as it holds."""


class PodEvents:
    """May be used from any thread. ``_lock`` guards ``_published``; it is not held while the daemon is asked."""

    def __init__(
        self,
        data_plane: DataPlane,
        recorder: EventRecorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a recorder nothing is sent, and the daemon is not asked."""
        self._data_plane = data_plane
        self._recorder = recorder
        self._clock = clock
        self._lock = threading.Lock()
        self._published: dict[str, _Published] = {}
        """By target path. Kubelet repeats NodePublishVolume, so that those of before a restart come back."""

    @property
    def is_sent(self) -> bool:
        """False outside of a cluster."""
        return self._recorder is not None

    def published(self, request: csi_pb2.NodePublishVolumeRequest) -> None:
        """A volume was published, or is again."""
        pod = pod_of(request.volume_context)
        if self._recorder is None or pod is None:
            return
        with self._lock:
            known = self._published.get(request.target_path)
            if known is None or known.pod != pod:
                self._published[request.target_path] = _Published(pod, request.volume_id)
            if len(self._published) > _MOST_VOLUMES:
                del self._published[next(iter(self._published))]

    def unpublished(self, target_path: str) -> None:
        """The volume is shown there no more."""
        with self._lock:
            self._published.pop(target_path, None)

    def poll(self) -> None:
        """Asks the daemon for the volumes that are published, and reports what is new. Blocks on the daemon; a daemon
        that is away is asked the next time."""
        with self._lock:
            published = list(self._published.values())
        if not published or self._recorder is None:
            return
        with suppress(HayloftError):
            limit_bytes = self._data_plane.report().cache_limit_bytes
            for one in published:
                with suppress(HayloftError):
                    self._look_at(one, limit_bytes, self._recorder)

    def _look_at(self, one: _Published, cache_limit_bytes: int, recorder: EventRecorder) -> None:
        for event in self._of_warmup(one, self._data_plane.warmup(one.volume_id)):
            recorder.record(event)
        if self._clock() < one.report_due_s:
            return
        report = self._data_plane.volume(one.volume_id)
        one.report_due_s = self._clock() + _REPORT_S
        warnings = list(_warnings(report, cache_limit_bytes))
        for reason, text in warnings:
            if (reason, text) not in one.told:
                recorder.record(Event(one.pod, reason, text, is_warning=True))
        one.told = set(warnings)

    def _of_warmup(self, one: _Published, warmup: WarmupReport) -> Iterator[Event]:
        before, one.warmup = one.warmup, warmup.state
        if warmup.state is WarmupState.RUNNING:
            if before is not WarmupState.RUNNING:  # a short one is reported by its end alone
                one.progress_due_s = self._clock() + _PROGRESS_S
            elif self._clock() >= one.progress_due_s:
                one.progress_due_s = self._clock() + _PROGRESS_S
                yield Event(one.pod, "WarmupProgress", f"Warmup of {one.volume_id}: {progress_text(warmup)}")
        elif warmup.state is not before:
            yield from _end_of_warmup(one, warmup)


def pod_of(volume_context: Mapping[str, str]) -> ObjectReference | None:
    """None: the caller names no pod."""
    name, namespace = volume_context.get(f"{_POD}name", ""), volume_context.get(f"{_POD}namespace", "")
    if not name or not namespace:
        return None
    return ObjectReference("Pod", namespace, name, volume_context.get(f"{_POD}uid", ""))


def _end_of_warmup(one: _Published, warmup: WarmupReport) -> Iterator[Event]:
    what = f"Warmup of {one.volume_id}"
    if warmup.state is WarmupState.COMPLETE:
        text = f"{what} is complete: {warmup.done_files} files, {human_size(warmup.done_bytes)} are on the node"
        yield Event(one.pod, "WarmupComplete", text)
    elif warmup.state is WarmupState.FULL:
        text = f"{what} has ended early, the rest does not fit into the cache: {warmup.message}"
        yield Event(one.pod, "CacheTooSmall", text, is_warning=True)
    elif warmup.state is WarmupState.FAILED:
        text = f"{what} has failed: {warmup.message or 'some objects could not be fetched'}"
        yield Event(one.pod, "WarmupFailed", text, is_warning=True)
    elif warmup.state is WarmupState.CANCELLED:
        yield Event(one.pod, "WarmupCancelled", f"{what} was cancelled; what it fetched stays cached")


def _warnings(report: VolumeReport, cache_limit_bytes: int) -> Iterator[tuple[str, str]]:
    """Reason and sentence."""
    for condition in report.conditions:
        yield condition.reason, f"Volume {report.volume_id}: {condition.message}"
    for note in report.notes:
        yield "VolumeNote", f"Volume {report.volume_id}: {note}"
    if 0 < cache_limit_bytes < report.total_bytes:
        yield (
            "CacheTooSmall",
            f"Volume {report.volume_id} shows {human_size(report.total_bytes)}, and the cache of this node holds "
            f"{human_size(cache_limit_bytes)} at the most: a part of it is read from the store in each epoch. Raise "
            "the limit of the cache (cache.limit of the chart), or select less of the dataset with include and exclude",
        )
