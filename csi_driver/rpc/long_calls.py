"""Keeps threads of a server free for short calls: calls that may take minutes have a part of the threads, and each
namespace a part of what the others leave: it takes eleven namespaces that block all they get to occupy all."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csi_driver.model.errors import BudgetExceeded

THREADS = 256
"""Of a server. Idle threads cost a few kilobytes each, and are started when they are needed."""

MOST = 192
"""Long calls in flight. The other 64 threads are for calls that take milliseconds: unmounts, probes, reports."""

OF_ONE_NAMESPACE = 32

OF_UNKNOWN_NAMESPACES = 64
"""Together, of all calls that do not say their namespace: those for volumes that an administrator made."""

_POD = "csi.storage.k8s.io/pod.namespace"
_CLAIM = "csi.storage.k8s.io/pvc/namespace"
_SNAPSHOT = "csi.storage.k8s.io/volumesnapshot/namespace"
_GROUP = "csi.storage.k8s.io/volumegroupsnapshot/namespace"

NAMESPACE_OF: Mapping[str, Callable[[Any], str]] = {
    "Mount": lambda request: request.namespace,
    "Publish": lambda request: "",
    "NodeStageVolume": lambda request: "",
    "NodePublishVolume": lambda request: request.volume_context.get(_POD, ""),
    "CreateVolume": lambda request: request.parameters.get(_CLAIM, ""),
    "CreateSnapshot": lambda request: request.parameters.get(_SNAPSHOT, ""),
    "CreateVolumeGroupSnapshot": lambda request: request.parameters.get(_GROUP, ""),
    "ControllerModifyVolume": lambda request: "",
}
"""The long calls of all services: they list a dataset, wait for a warmup or build a view."""


class LongCalls:
    """The long calls of one server. May be used from any thread."""

    def __init__(
        self, most: int = MOST, of_one_namespace: int = OF_ONE_NAMESPACE, of_unknown: int = OF_UNKNOWN_NAMESPACES
    ) -> None:
        self._most, self._of_one_namespace, self._of_unknown = most, of_one_namespace, of_unknown
        self._lock = threading.Lock()  # guards _in_flight; not held during a call
        self._in_flight: Counter[str] = Counter()

    @contextmanager
    def admitted(self, method: str, request: object) -> Iterator[None]:
        """Counts a long call during the body; does nothing for a short one. A namespace begins one more only while at
        least as many are free as it has then. Never waits: raises BudgetExceeded, and the caller retries."""
        namespace_of = NAMESPACE_OF.get(method)
        if namespace_of is None:
            yield
            return
        namespace = namespace_of(request)
        self._begin(method, namespace)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[namespace] -= 1
                self._in_flight += Counter()  # drops counts of zero: there is no end of namespaces

    def _begin(self, method: str, namespace: str) -> None:
        share = self._of_one_namespace if namespace else self._of_unknown
        with self._lock:
            of_namespace, in_all = self._in_flight[namespace], self._in_flight.total()
            if of_namespace < share and of_namespace < self._most - in_all:
                self._in_flight[namespace] += 1
                return
        whose = f"of namespace {namespace!r}" if namespace else "for volumes of administrators"
        used = f"{share} {whose}" if of_namespace >= share else "in all"
        raise BudgetExceeded(f"{method}: as many calls that may take minutes are in flight as may be, {used}; retry")
