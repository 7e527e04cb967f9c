"""Tells the cluster that the node has the driver, with each registration by kubelet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from csi_driver import telemetry
from csi_driver.kubernetes.api_server import Answer
from csi_driver.kubernetes.own_node import (
    READY_CONDITION,
    STARTUP_TAINT,
    NodeApi,
    remove_startup_taint,
    report_ready,
)
from csi_driver.model.errors import HayloftError
from csi_driver.model.tracebacks import summary

logger = logging.getLogger(__name__)

_DAEMON_POLL_S = 0.5
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
"""Pods wait for the removal of the taint, so that the first retry is soon."""

_CONFLICT = 409
"""The Node was changed between two requests, as kubelet and controllers do all the time."""


class NodeReadiness:
    """Changes the Node when kubelet has registered the driver and the cache daemon answers: not before, or pods would
    come that cannot be started. Kubelet registers the driver anew when it is restarted, so that is looked at again."""

    def __init__(
        self,
        api: NodeApi,
        node: str,
        accepted: threading.Event,
        require_ready: Callable[[], object],
        *,
        remove_taint: bool,
        report_condition: bool,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``accepted`` is set with each registration, and cleared here. ``require_ready`` raises a HayloftError while
        the node plugin cannot serve."""
        self._api, self._node, self._accepted, self._require_ready = api, node, accepted, require_ready
        self._steps: list[tuple[str, Callable[[], Answer]]] = []
        if remove_taint:
            what = f"the taint {STARTUP_TAINT} is not removed"
            self._steps.append((what, lambda: remove_startup_taint(api, node)))
        if report_condition:
            what = f"the condition {READY_CONDITION} is not reported"
            time = "%Y-%m-%dT%H:%M:%SZ"
            self._steps.append((what, lambda: report_ready(api, node, now().strftime(time))))
        self._ending = threading.Event()

    @contextmanager
    def following(self) -> Iterator[None]:
        """During the body, a thread changes the Node with each registration."""
        thread = threading.Thread(target=self._run, name="node-readiness", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._accepted.set()  # wakes the thread; one in a request ends with the process

    def _run(self) -> None:
        while self._accepted.wait() and not self._ending.is_set():
            self._accepted.clear()
            try:
                self.change_node()
            except Exception as error:  # noqa: BLE001  # the next registration may succeed
                facts = telemetry.fields(node=self._node, error=summary(error))
                logger.error(
                    "unexpected error while the Node is changed; it is retried at the next registration", extra=facts
                )

    def change_node(self) -> None:
        """Blocks until the Node is as it is to be, or ``following`` ends."""
        while not self._is_ready():
            if self._ending.wait(_DAEMON_POLL_S):
                return
        for what, send in self._steps:
            self._until_done(what, send)
        logger.info("the Node says that the driver is ready", extra=telemetry.fields(node=self._node))

    def _is_ready(self) -> bool:
        try:
            self._require_ready()
        except HayloftError:
            return False
        return True

    def _until_done(self, what: str, send: Callable[[], Answer]) -> None:
        backoff_s, is_logged = FIRST_BACKOFF_S, False
        while not (answer := send()).is_success:
            if answer.status != _CONFLICT and not is_logged:
                is_logged = True
                facts = telemetry.fields(
                    node=self._node,
                    status=answer.status or None,
                    error=answer.problem or answer.body.get("message") or answer.body.get("reason"),
                )
                logger.warning(
                    "%s, since the API server refuses the change of the Node; it is retried", what, extra=facts
                )
            if self._ending.wait(backoff_s):
                return
            backoff_s = min(LONGEST_BACKOFF_S, 2 * backoff_s)
