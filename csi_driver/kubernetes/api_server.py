"""Requests to the API server of the cluster that this pod runs in. Standard library only; what a connection needs is
imported with the first one.

The account, its token and the certificates are those that kubelet puts into the pod. Nothing here retries: what is sent
is lost without harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from csi_driver.model.errors import KubernetesUnavailable
from csi_driver.model.tracebacks import summary

if TYPE_CHECKING:
    from http.client import HTTPSConnection

ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
"""Lists of objects with a key, such as the conditions of a Node, are merged and not replaced."""

_TIMEOUT_S = 5.0
_LONGEST_ANSWER_BYTES = 1 << 20
_SHOWN_BYTES = 200


class Answer(NamedTuple):
    """``status`` 0: there was none, and ``problem`` says why."""

    status: int
    body: Mapping[str, Any]
    problem: str = ""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class ApiServer:
    """May be used from any thread. Each request has a connection of its own: token and certificates are replaced from
    time to time, and there are few requests."""

    def __init__(self, host: str, port: int, account_directory: Path) -> None:
        self._host, self._port, self._directory = host, port, account_directory

    @classmethod
    def of_this_pod(
        cls, environment: Mapping[str, str], account_directory: Path = ACCOUNT_DIRECTORY
    ) -> ApiServer | None:
        """None outside of a cluster, and in a pod without a token."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port.isdigit() or not (account_directory / "token").is_file():
            return None
        return cls(host, int(port), account_directory)

    def send(self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json") -> Answer:
        """One request. Blocks up to ``_TIMEOUT_S`` for each step of it, and raises nothing: see ``Answer``."""
        return self._exchange(method, path, json.dumps(body), {"Content-Type": content_type})

    def get(self, path: str) -> Answer:
        """As ``send``, without a body."""
        return self._exchange("GET", path, None, {})

    def watch(self, path: str, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        """The events of a watch, until the server ends it. ``timeout_s`` bounds the wait for each: longer than the
        server lets a watch be without one. Raises KubernetesUnavailable."""
        import http.client

        connection = None
        try:
            connection = self._connect(timeout_s)
            connection.request("GET", path, None, self._headers())
            response = connection.getresponse()
            if response.status != 200:
                shown = response.read(_SHOWN_BYTES).decode(errors="replace")
                raise KubernetesUnavailable(f"the API server refuses a watch: HTTP {response.status}: {shown}")
            while line := response.readline(_LONGEST_ANSWER_BYTES):
                if not line.endswith(b"\n"):
                    raise KubernetesUnavailable("an event of a watch is too long, or was cut off")
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise KubernetesUnavailable(f"a watch has failed: {summary(error)}") from error
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, timeout_s: float) -> HTTPSConnection:
        """Raises OSError, ValueError."""
        import http.client
        import ssl

        context = ssl.create_default_context(cafile=str(self._directory / "ca.crt"))
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)

    def _headers(self) -> dict[str, str]:
        """Raises OSError, ValueError."""
        token = (self._directory / "token").read_text().strip()
        return {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def _exchange(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Answer:
        import http.client

        try:
            connection = self._connect(_TIMEOUT_S)
            try:
                connection.request(method, path, body, {**self._headers(), **headers})
                response = connection.getresponse()
                text = response.read(_LONGEST_ANSWER_BYTES)
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Answer(0, {}, summary(error))
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = {}
        return Answer(response.status, found if isinstance(found, dict) else {})
