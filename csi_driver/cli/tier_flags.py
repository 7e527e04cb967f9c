"""Flags of the cluster's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable

from csi_driver.cli.flag_values import parse_duration
from csi_driver.model.errors import InvalidParameter, MissingParameter
from csi_driver.model.replica import Replica
from csi_driver.settings import TierSettings

_REPLICA = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})"
    r"(?:@(?P<zone>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?))?"
)
_SERVICE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?/[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_ALLOWED = "HOST:PORT or HOST:PORT@ZONE, such as 10.1.2.3:8443@eu-1a or [fd00::1]:8443"


def parse_replicas(flag: str, texts: Iterable[str]) -> tuple[Replica, ...]:
    """Raises InvalidParameter."""
    found: dict[str, Replica] = {}
    for text in texts:
        match = _REPLICA.fullmatch(text.strip())
        if match is None or not 0 < int(match["port"]) <= 65535:
            raise InvalidParameter(flag, text, _ALLOWED)
        host, port = match["host"].strip("[]"), int(match["port"])
        name = f"{match['host'].lower()}:{port}"
        if name in found:
            raise InvalidParameter(flag, text, f"each replica once; {name} is given twice")
        found[name] = Replica(name, host, port, match["zone"] or "")
    return tuple(found.values())


def parse_tier_timeout(flag: str, text: str) -> float:
    """In seconds. Raises InvalidParameter."""
    seconds = parse_duration(flag, text)
    if not 0.1 <= seconds <= 300:
        raise InvalidParameter(flag, text, "a duration from 100ms to 5m")
    return seconds


def tier_settings(settings: TierSettings) -> TierSettings:
    """The settings themselves. Raises InvalidParameter, MissingParameter for those that do not go together."""
    if settings.replicas and settings.service:
        raise InvalidParameter("--tier-service", settings.service, "one of --tier and --tier-service")
    if settings.service and not _SERVICE.fullmatch(settings.service):
        raise InvalidParameter("--tier-service", settings.service, "NAMESPACE/NAME of a Service")
    if not settings.enabled:
        return settings
    if settings.key_file is None:
        raise MissingParameter("--tier-key", "the cluster's cache needs a key that all nodes share: 32 random bytes")
    files = (settings.ca_file, settings.certificate_file, settings.certificate_key_file)
    if any(files) and not all(files):
        raise MissingParameter(
            "--tier-ca, --tier-cert and --tier-cert-key", "give all three, or none for plain HTTP with signed paths"
        )
    return settings
