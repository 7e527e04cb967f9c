"""Requests to the API server of the cluster that this pod runs in. Standard library only; what a connection needs is
imported with the first one.

The account, its token and the certificates are those that kubelet puts into the pod. Nothing here retries: what is sent
is lost without harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from csi_driver.model.tracebacks import summary

ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
"""Lists of objects with a key, such as the conditions of a Node, are merged and not replaced."""

_TIMEOUT_S = 5.0
_LONGEST_ANSWER_BYTES = 1 << 20


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
        import http.client
        import ssl

        try:
            token = (self._directory / "token").read_text().strip()
            context = ssl.create_default_context(cafile=str(self._directory / "ca.crt"))
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=context)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type, "Accept": "application/json"}
            try:
                connection.request(method, path, json.dumps(body), headers)
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
