"""Replicas of the cluster's cache: servers that nodes ask before the bucket (docs/cluster-cache.md)."""

from __future__ import annotations

from typing import NamedTuple


class Replica(NamedTuple):
    """One server of the tier."""

    name: str
    """Decides which slices it has: it stays when the server gets another address."""
    host: str
    """A name, or an IPv4 or IPv6 address without brackets."""
    port: int
    zone: str = ""
    """Empty: not known."""


USED_SHARE = 0.9
"""Of the size of a replica, what nodes count on: it evicts before its disk is full."""
