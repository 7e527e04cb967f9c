"""The sending of events to Kubernetes, in a cluster."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver import telemetry
from csi_driver.csi.pod_events import POLL_S, PodEvents
from csi_driver.kubernetes.api_server import ApiServer
from csi_driver.kubernetes.event_sender import EventSender
from csi_driver.kubernetes.events import EventRecorder
from csi_driver.model.tracebacks import summary

logger = logging.getLogger(__name__)


@contextmanager
def sending_events(host: str) -> Iterator[EventRecorder | None]:
    """What takes events in the body; None outside of a cluster, and in a pod without a token for its API server.
    ``host``: the node or pod that they come from."""
    api = ApiServer.of_this_pod(os.environ)
    if api is None:
        logger.debug("no events are sent: this is no pod with a token for the API server of a cluster")
        yield None
        return
    sender = EventSender(api, host)
    sender.start()
    try:
        yield sender
    finally:
        sender.close()


@contextmanager
def polling(events: PodEvents) -> Iterator[None]:
    """During the body, a thread looks for events of published volumes, if there is a cluster to send them to."""
    if not events.is_sent:
        yield
        return
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(POLL_S):
            try:
                events.poll()
            except Exception as error:  # noqa: BLE001  # the next poll may succeed
                facts = telemetry.fields(error=summary(error))
                logger.error("unexpected error while volumes are looked at for events; it is retried", extra=facts)

    thread = threading.Thread(target=run, name="pod-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
