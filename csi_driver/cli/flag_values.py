"""Values of flags: sizes, shares of a disk, addresses."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from csi_driver.cli import complain
from csi_driver.model.errors import InvalidParameter

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9._-]+\Z")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*\Z")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%\Z")

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}{ending}": 1024 ** (power + 1) for power, letter in enumerate("KMGTP") for ending in ("i", "iB")},
    **{f"{letter}{ending}": 1000 ** (power + 1) for power, letter in enumerate("KMGTP") for ending in ("", "B")},
    **{f"k{ending}": 1000 for ending in ("", "B")},
}
"""Units of Kubernetes and of disk manufacturers: Gi and GiB are 1024³ bytes, G and GB are 1000³."""

_SIZES_ALLOWED = "a size such as 500GiB, 2TB or 1048576"

_LEAST_WITHOUT_UNIT = 1 << 16
"""A smaller number of bytes is 500 for 500GiB, as a rule: no flag has a use for so few."""


@dataclass(frozen=True, slots=True)
class DiskShare:
    """A number of bytes, or a share of a file system."""

    size_bytes: int = 0
    share: float = 0.0

    def on(self, directory: Path) -> int:
        """In bytes, for the file system of the directory. Raises OSError for a share of a missing directory."""
        if not self.share:
            return self.size_bytes
        status = os.statvfs(directory)
        return int(status.f_blocks * status.f_frsize * self.share)


def parse_size(flag: str, text: str) -> int:
    """In bytes. Raises InvalidParameter."""
    found = _SIZE.match(text.strip())
    if found is None or found[2] not in _UNITS:
        raise InvalidParameter(flag, text, _SIZES_ALLOWED)
    if not found[2] and 0 < float(found[1]) < _LEAST_WITHOUT_UNIT:
        raise InvalidParameter(flag, text, _SIZES_ALLOWED, f"{text.strip()} has no unit: it would be that many bytes")
    return int(float(found[1]) * _UNITS[found[2]]) if "." in found[1] else int(found[1]) * _UNITS[found[2]]


def parse_address(flag: str, text: str) -> str:
    """An IPv4 or IPv6 address without brackets. Raises InvalidParameter."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        allowed = "an IPv4 or IPv6 address of this machine, such as 127.0.0.1, 0.0.0.0 or ::"
        raise InvalidParameter(flag, text, allowed) from None


def parse_duration(flag: str, text: str) -> float:
    """``90s``, ``15m`` or ``24h``, in seconds, up to a year. Raises InvalidParameter."""
    from csi_driver.volumes.parameter_text import duration  # not at the start of every command

    return duration(flag, text.strip(), least_s=0, most_s=365 * 86_400.0)


def parse_port(flag: str, number: int) -> int:
    """Raises InvalidParameter."""
    if not 0 <= number <= 65535:
        raise InvalidParameter(flag, number, "0 to 65535")
    return number


def parse_topology(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` each, as labels of Kubernetes. One without a value is left out: a node without the label. Raises
    InvalidParameter."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        prefix, slash, name = key.rpartition("/")
        if not equals or not _LABEL.match(name) or not _LABEL.match(value or "x"):
            allowed = "KEY=VALUE as in a label of Kubernetes, such as topology.kubernetes.io/zone=eu-1a"
            raise InvalidParameter(flag, text, allowed)
        if slash and not _DOMAIN.match(prefix):
            raise InvalidParameter(flag, text, "a key whose part before the slash is a DNS name in lower case")
        if key in found:
            raise InvalidParameter(flag, text, f"each key once; {key} is given twice")
        if value:
            found[key] = value
    return found


def parse_share(flag: str, text: str) -> float:
    """``98%`` as 0.98. Raises InvalidParameter."""
    share = _SHARE.match(text.strip())
    if share is None or not 0 < float(share[1]) <= 100:
        raise InvalidParameter(flag, text, "a share above 0% and up to 100%, such as 95%")
    return float(share[1]) / 100


def parse_size_or_share(flag: str, text: str) -> DiskShare:
    """A size, or a share such as ``20%``. Raises InvalidParameter."""
    share = _SHARE.match(text.strip())
    if share is None:
        try:
            return DiskShare(size_bytes=parse_size(flag, text))
        except InvalidParameter as error:
            allowed = f"{_SIZES_ALLOWED}, or a share such as 20%"
            raise InvalidParameter(flag, text, allowed, error.remedy) from None
    if not 0 < float(share[1]) <= 100:
        raise InvalidParameter(flag, text, "a share above 0% and up to 100%")
    return DiskShare(share=float(share[1]) / 100)


def addresses_of(flag: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Networks and addresses as they are, names of hosts as their addresses of this moment. A name without an address
    is left out, with a warning: nothing can be dialled by it either. Blocks on the resolver."""
    found: list[str] = []
    for text in texts:
        if not _HOST_NAME.match(text):
            found.append(text)  # the settings refuse what is no network
            continue
        try:
            resolved = socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)
        except OSError as error:
            complain(f"warning: {flag}: {text} has no address ({error.strerror}); it has no effect")
            continue
        found.extend(dict.fromkeys(str(address[0]) for *_, address in resolved))
    return tuple(found)
