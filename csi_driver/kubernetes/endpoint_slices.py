"""The endpoints of a headless Service, as the cluster lists them in EndpointSlices, watched on a thread."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from csi_driver import telemetry
from csi_driver.kubernetes.api_server import Answer
from csi_driver.model.errors import KubernetesUnavailable
from csi_driver.model.replica import Replica

logger = logging.getLogger(__name__)

WATCH_S = 300
"""The API server ends a watch after so long; the next one begins where it ended."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between tries, doubled with each that fails: with jitter, since all nodes lose the API server together."""
_GONE = 410


class EventSource(Protocol):
    """``ApiServer``, or its twin in tests."""

    def get(self, path: str) -> Answer:
        """One request. Blocks; raises nothing."""

    def watch(self, path: str, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        """Events of a watch until it ends. Blocks. Raises KubernetesUnavailable."""


class EndpointSlices:
    """The ready endpoints. As long as the API server does not answer, those that were known last.

    Fields are written by the thread alone; ``members`` is replaced as one value.
    """

    def __init__(self, api_server: EventSource, namespace: str, service: str, port_name: str = "tier") -> None:
        self._api_server, self._port_name = api_server, port_name
        self._service = f"{namespace}/{service}"
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace, safe='')}/endpointslices"
        self._selector = {"labelSelector": f"kubernetes.io/service-name={service}"}
        self._slices: dict[str, Mapping[str, Any]] = {}
        self.members: tuple[Replica, ...] = ()
        """The same value while nothing changes."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint-slices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Does not wait for a watch that is in flight: the thread ends with it, or with the process."""
        self._ending.set()

    def _run(self) -> None:
        version, failures = "", 0
        while not self._ending.is_set():
            try:
                version = self._list() if not version else self._watch(version)
                failures = 0
                continue
            except KubernetesUnavailable as error:
                version, failures = "", failures + 1
                if failures == 1:
                    facts = telemetry.fields(service=self._service, error=str(error))
                    logger.warning("the replicas of the cluster's cache cannot be listed; it is retried", extra=facts)
            except BaseException:  # an object of an unknown form must not end the thread
                version, failures = "", failures + 1
                logger.exception("unexpected error in a list of EndpointSlices; it is retried")
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
            self._ending.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads nodes

    def _list(self) -> str:
        """Returns the version from which a watch goes on. Raises KubernetesUnavailable."""
        answer = self._api_server.get(f"{self._path}?{urlencode(self._selector)}")
        if not answer.is_success:
            raise KubernetesUnavailable(answer.problem or f"HTTP {answer.status}: {answer.body.get('message', '')}")
        self._slices = {_name(found): found for found in answer.body.get("items") or ()}
        self._update()
        return _version(answer.body)

    def _watch(self, version: str) -> str:
        """Until it ends. Returns the version from which the next one goes on; empty: all has to be listed again. Raises
        KubernetesUnavailable."""
        query = {
            **self._selector,
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        for event in self._api_server.watch(f"{self._path}?{urlencode(query)}", WATCH_S + 30.0):
            if self._ending.is_set():
                break
            kind, found = event.get("type"), event.get("object") or {}
            if kind == "ERROR":
                if found.get("code") == _GONE:
                    return ""
                raise KubernetesUnavailable(str(found.get("message", "the watch has failed")))
            version = _version(found) or version
            if kind == "DELETED":
                self._slices.pop(_name(found), None)
            elif kind in ("ADDED", "MODIFIED"):
                self._slices[_name(found)] = found
            else:
                continue
            self._update()
        return version

    def _update(self) -> None:
        found = members_of(self._slices.values(), self._port_name)
        if found != self.members:
            self.members = found


def members_of(slices: Any, port_name: str) -> tuple[Replica, ...]:
    """The ready endpoints of EndpointSlices, sorted by name. One that is ending is not ready any more: it is left
    before it ends. The name is that of the pod, which a StatefulSet gives to its successor; of a pod of a DaemonSet,
    whose names are random, that of its node."""
    found: dict[str, Replica] = {}
    for each in slices:
        port = _port(each.get("ports") or (), port_name)
        for endpoint in each.get("endpoints") or ():
            addresses, conditions = endpoint.get("addresses") or (), endpoint.get("conditions") or {}
            if port is None or not addresses or conditions.get("ready") is False or conditions.get("terminating"):
                continue
            name = endpoint.get("hostname") or endpoint.get("nodeName") or addresses[0]
            found.setdefault(name, Replica(name, str(addresses[0]), port, str(endpoint.get("zone") or "")))
    return tuple(found[name] for name in sorted(found))


def _port(ports: Any, port_name: str) -> int | None:
    numbers = [port.get("port") for port in ports if port.get("name") in (port_name, "", None)]
    return next((number for number in numbers if isinstance(number, int)), None)


def _name(found: Mapping[str, Any]) -> str:
    return str((found.get("metadata") or {}).get("name", ""))


def _version(found: Mapping[str, Any]) -> str:
    return str((found.get("metadata") or {}).get("resourceVersion", ""))
