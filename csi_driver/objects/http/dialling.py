"""The one place where names of stores become addresses, and where those are judged and dialled.

A name is resolved once for a connection: the address that is judged is the address that is dialled, so a name that
changes in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import codecs
import socket
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from csi_driver.model.addresses import AddressRules, IPAddress, carried_addresses, is_in
from csi_driver.model.errors import AddressNotAllowed

MOST_TRIED = 4
"""Addresses of a name that are tried for one connection: the owner of the name decides how many there are."""
# getaddrinfo and ssl encode names with this codec, which Python loads at its first use, partly from a shared library.
# Without a free descriptor that fails, and Python keeps "unknown encoding" until the process ends.
codecs.lookup("idna")

_DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21, "sftp": 22, "ssh": 22}


class SocketAddress(NamedTuple):
    """What connect(2) takes."""

    family: int
    address: Any


def allowed_addresses(rules: AddressRules, host: str, port: int) -> list[SocketAddress]:
    """The addresses of ``host`` that may be dialled, at least one. Blocks on the resolver. Raises AddressNotAllowed if
    it has others only, socket.gaierror if it has none."""
    found = _resolve(host, port)
    if rules.lists(host):
        return found
    allowed, refusal = [], ""
    for candidate in found:
        address = ip_address(candidate.address[0])
        judged, reason = carried_addresses(address)[0], rules.refusal(address)
        if reason is None and rules.public_only and not is_in(judged, rules.allowed) and _is_own(candidate):
            reason = "an address of this node"
        if reason is None:
            allowed.append(candidate)
        else:
            refusal = refusal or _message(rules, host, judged, reason)
    if not allowed:
        raise AddressNotAllowed(refusal)
    return allowed


def dial(rules: AddressRules, host: str, port: int, timeout_s: float | None) -> socket.socket:
    """A connected socket without a timeout. ``timeout_s`` bounds the wait for each address. Raises AddressNotAllowed,
    OSError."""
    failure: OSError | None = None
    for candidate in allowed_addresses(rules, host, port)[:MOST_TRIED]:
        connection = None
        try:
            connection = socket.socket(candidate.family, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            connection.connect(candidate.address)
        except OSError as error:
            failure = error
            if connection is not None:
                connection.close()
            continue
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise failure or socket.gaierror(socket.EAI_NONAME, "no address")


def check_endpoint(rules: AddressRules, url: str) -> None:
    """For clients that resolve and dial by themselves, which only stores of trusted volumes or listed endpoints use,
    and for a proxy of the node, which resolves the name itself. A name that does not resolve here passes: a proxy may
    know it. Blocks on the resolver. Raises AddressNotAllowed."""
    parts = urlsplit(url)
    if not parts.hostname:
        return
    try:
        allowed_addresses(rules, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0))
    except socket.gaierror:
        return


def _resolve(host: str, port: int) -> list[SocketAddress]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
    return [SocketAddress(family, address) for family, _, _, _, address in found]


def _is_own(candidate: SocketAddress) -> bool:
    """Whether it is an address of this pod, or of the node whose network the pod uses; such an address may be public.
    Sends nothing: connecting a datagram socket only selects the source, which is the destination itself if that is
    local."""
    try:
        with socket.socket(candidate.family, socket.SOCK_DGRAM) as probe:
            probe.connect(candidate.address)
            return bool(probe.getsockname()[0] == candidate.address[0])
    except OSError:  # no route: nothing can be sent there
        return False


def _message(rules: AddressRules, host: str, address: IPAddress, reason: str) -> str:
    remedy = f"Ask the operator of the driver to allow it by --allowed-address={address}"
    if rules.public_only:
        remedy += ", or the endpoint by --allowed-endpoint"
    return f"endpoint: the host {host!r} has the address {address}, {reason}, where nothing is sent. {remedy}"
