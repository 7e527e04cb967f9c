"""How large a dataset may be, so that a node's cache holds all of it. The operator says so: a cache evicts, so a larger
one works as well, and no node is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csi_driver.settings import CacheCapacity


def capacity_for(capacities: Sequence[CacheCapacity], segments: Mapping[str, str]) -> int:
    """In bytes, of the nodes in a topology: by the capacity that names most of its segments, and no others. Without
    segments it is the largest of all. 0: the operator has named no such nodes."""
    if not segments:
        return max((one.size_bytes for one in capacities), default=0)
    fitting = [one for one in capacities if one.topology.items() <= segments.items()]
    return max(fitting, key=lambda one: len(one.topology)).size_bytes if fitting else 0
