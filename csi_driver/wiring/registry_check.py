"""Finds out at the start whether the registry's store can hold a registry, without waiting for one that is down."""

from __future__ import annotations

import logging
import threading

from csi_driver import telemetry
from csi_driver.model.errors import InvalidParameter, RegistryUnavailable
from csi_driver.volumes.registry import Registry

logger = logging.getLogger(__name__)

START_WAIT_S = 5.0
"""How long the start waits for the answer. A store answers in milliseconds; one that is down must not keep a daemon
from serving what is cached."""


def check_registry(registry: Registry, location: str, wait_s: float = START_WAIT_S) -> None:
    """Raises InvalidParameter for a store without conditional writes. After ``wait_s`` the check continues in the
    background, and its result is logged; the first write repeats it."""
    refused: list[InvalidParameter] = []

    def check() -> None:
        facts = telemetry.fields(registry=location)
        try:
            registry.check()
        except InvalidParameter as error:
            refused.append(error)
            logger.error("the registry cannot be used: %s", error, extra=facts)
        except RegistryUnavailable as error:
            logger.warning("the registry is not available yet, and is checked when it is used: %s", error, extra=facts)

    thread = threading.Thread(target=check, name="registry-check", daemon=True)
    thread.start()
    thread.join(wait_s)
    if refused:
        raise refused[0]
