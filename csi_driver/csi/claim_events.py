"""Events at a claim while its volume is created: the progress of the listing, and what its author should know of the
dataset. Errors are not among them: external-provisioner makes an event of the status of each call that fails."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from csi_driver.catalog.manifest_notes import IMPORTED
from csi_driver.kubernetes.events import Event, EventRecorder, ObjectReference
from csi_driver.rpc import progress
from csi_driver.rpc.pb import csi_pb2
from csi_driver.volumes.warmup_waiting import human_size

_CLAIM_NAME = "csi.storage.k8s.io/pvc/name"
_CLAIM_NAMESPACE = "csi.storage.k8s.io/pvc/namespace"
"""Parameters that external-provisioner adds with --extra-create-metadata."""

_UID_IN_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
"""The end of the name that external-provisioner gives a volume by default: the uid of the claim."""

_PROGRESS_S = 60.0
"""Interval of the events about one listing. Their texts differ, so each is an object of Kubernetes."""


class ClaimEvents:
    """May be used from any thread."""

    def __init__(self, recorder: EventRecorder | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a recorder nothing is sent."""
        self._recorder = recorder
        self._clock = clock

    @contextmanager
    def listing(self, request: csi_pb2.CreateVolumeRequest) -> Iterator[None]:
        """Reports a listing in the body: its progress, if it takes a minute or more, and what it found."""
        claim = claim_of(request.name, request.parameters)
        if claim is None or self._recorder is None:
            yield
            return
        with progress.observed_by(_Observer(claim, self._recorder, self._clock)):
            yield


class _Observer:
    """Of one listing."""

    def __init__(self, claim: ObjectReference, recorder: EventRecorder, clock: Callable[[], float]) -> None:
        self._claim, self._recorder, self._clock = claim, recorder, clock
        self._due_s = clock() + _PROGRESS_S
        self._before = (clock(), 0)
        """The time of the last event, and how many objects were listed then."""

    def listed(self, count: int) -> None:
        now_s = self._clock()
        if now_s < self._due_s:
            return
        before_s, before = self._before
        rate = (count - before) / max(now_s - before_s, 1.0)
        self._due_s, self._before = now_s + _PROGRESS_S, (now_s, count)
        self._record("ListingDataset", f"The dataset is being listed: {count} objects so far, {rate:.0f} a second")

    def finished(self, file_count: int, total_bytes: int, remarks: Sequence[tuple[str, str]]) -> None:
        self._record("DatasetListed", f"The dataset has {file_count} files, {human_size(total_bytes)}")
        for reason, sentence in remarks:
            # That a list was imported is what the claim's author wanted.
            self._record(reason, sentence, is_warning=reason != IMPORTED)

    def _record(self, reason: str, message: str, *, is_warning: bool = False) -> None:
        self._recorder.record(Event(self._claim, reason, message, is_warning))


def claim_of(volume_name: str, parameters: Mapping[str, str]) -> ObjectReference | None:
    """None: the caller names no claim."""
    namespace, name = parameters.get(_CLAIM_NAMESPACE, ""), parameters.get(_CLAIM_NAME, "")
    if not namespace or not name:
        return None
    uid = _UID_IN_NAME.search(volume_name)
    return ObjectReference("PersistentVolumeClaim", namespace, name, uid[0] if uid else "")
