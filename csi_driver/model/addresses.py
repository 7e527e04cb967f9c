"""Which network addresses a volume's store may have. Decides about values; ``objects/http/dialling.py`` resolves names
and dials."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

METADATA_NETWORKS: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16",  # link-local: AWS, Google, Azure, Oracle, OpenStack, DigitalOcean, Hetzner, ECS, EKS
            "fe80::/10",  # link-local
            "fd00:ec2::/32",  # AWS over IPv6
            "fd20:ce::254/128",  # Google over IPv6
            "fd00:c1::a9fe:a9fe/128",  # Oracle over IPv6
            "fd00:42::42/128",  # Scaleway over IPv6
            "168.63.129.16/32",  # Azure's WireServer, which looks like a public address
            "100.100.100.200/32",  # Alibaba
            "192.0.0.192/32",  # Oracle's older one
        ),
    )
)
"""Services of a cloud that hand out the node's identity, as the providers document them."""

_PUBLIC_IPV6 = ip_network("2000::/3")
"""All that IANA has assigned as global unicast. Listed rather than derived from ``is_global``, which takes multicast
and site-local addresses for global, and differs between releases of Python."""
_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            *(
                "192.0.0.0/24",
                "192.88.99.0/24",
                "224.0.0.0/4",
                "240.0.0.0/4",
            ),  # special use, anycast of 6to4, multicast
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # special use, documentation, 6to4
        ),
    )
)
_NAT64, _LOCAL_NAT64 = IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The addresses that one volume's store may have. The default is for a volume of an administrator: any, except
    those of metadata services."""

    public_only: bool = False
    """For a volume of an untrusted author: only addresses of the internet."""
    allowed: tuple[IPNetwork, ...] = ()
    """Networks that are allowed nevertheless (``--allowed-address``)."""
    refused: tuple[IPNetwork, ...] = ()
    """Networks that ``public_only`` refuses although they are public (``--refused-address``)."""
    listed_hosts: frozenset[str] = frozenset()
    """Hosts of endpoints that the operator lists (``--allowed-endpoint``), in lower case: they may have any address."""

    def lists(self, host: str) -> bool:
        """Whether the operator lists the host, which may then have any address."""
        return host.lower() in self.listed_hosts

    def trusts(self, host: str) -> bool:
        """Whether a client that resolves names by itself, such as a proxy of the node, may connect to the host."""
        return not self.public_only or self.lists(host)

    def refusal(self, address: IPAddress) -> str | None:
        """Why the address is refused, as a part of a sentence; None: it is allowed. An address that carries another
        one (IPv4-mapped, NAT64, 6to4, Teredo) is refused where the other one is."""
        for carried in carried_addresses(address):
            reason = self._refusal(carried)
            if reason is not None:
                return reason
        return None

    def _refusal(self, address: IPAddress) -> str | None:
        if is_in(address, self.allowed):
            return None
        if is_in(address, METADATA_NETWORKS):
            return "a link-local address or a metadata service of a cloud"
        if not self.public_only:
            return None
        if not is_public(address):
            return "not an address of the internet"
        return "an address of the node or the cluster" if is_in(address, self.refused) else None


ANY_BUT_METADATA = AddressRules()
"""For stores that an administrator named."""


def is_in(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    """Whether one of the networks holds the address."""
    return any(network.version == address.version and address in network for network in networks)


def is_public(address: IPAddress) -> bool:
    """Whether the address is one of the internet: neither private, shared, loopback, link-local, multicast nor of any
    other special use. Of an address that carries another one, call it for both."""
    if is_in(address, _NOT_PUBLIC) or not address.is_global:
        return False
    return isinstance(address, IPv4Address) or address in _PUBLIC_IPV6


def carried_addresses(address: IPAddress) -> tuple[IPAddress, ...]:
    """The addresses that packets may reach: the address itself, or the IPv4 address in it that the kernel or a gateway
    would use instead."""
    if isinstance(address, IPv4Address):
        return (address,)
    address = IPv6Address(int(address))  # without the zone, which would make it equal to no network's address
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (_last_32_bits(address),)
    if address in _LOCAL_NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return (address, _last_32_bits(address))
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    if address.teredo is not None:
        return (address, *address.teredo)
    return (address,)


def _last_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def parse_network(text: str) -> IPNetwork:
    """A network such as ``10.1.0.0/16``, or one address. Raises ValueError."""
    return ip_network(text.strip())
