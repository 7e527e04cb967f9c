"""Which replicas are asked for a slice, and whether the tier is asked at all. Functions of values: every node decides
alike, without a word between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from csi_driver.model.chunk import ByteRange
from csi_driver.model.replica import Replica

STRIPE_BYTES = 64 << 20
"""A replica has this much of an object in a row. A multiple of the slices of the servers, so that no slice is on two of
them; large, so that few requests of at most 16 MiB have to be split; and small against files of many gigabytes, which
all replicas share."""

_ALL = 1 << 64


def usable_replicas(replicas: Sequence[Replica], zone: str, *, cross_zone: bool) -> tuple[Replica, ...]:
    """Those that a node in ``zone`` may ask. Bytes that pass the border of a zone cost money both ways, so the bucket
    is asked before another zone, unless ``cross_zone``. Where one of both zones is not known there is no border."""
    if not zone or cross_zone:
        return tuple(replicas)
    return tuple(replica for replica in replicas if replica.zone in ("", zone))


def ranking(replicas: Sequence[Replica], shard: str, zone: str = "") -> list[Replica]:
    """All replicas, the one to be asked first in front: rendezvous hashing, within the own ``zone`` and then within all
    others. A replica that comes or goes moves the shards that it has, or had, and no other."""
    hashed = _hash(shard)
    return sorted(replicas, key=lambda replica: (bool(zone) and replica.zone != zone, _score(replica.name, hashed)))


def stripes(byte_range: ByteRange) -> list[ByteRange]:
    """The range in parts, none of which passes the border of a stripe."""
    parts, start = [], byte_range.start
    while start < byte_range.stop:
        stop = min(byte_range.stop, (start // STRIPE_BYTES + 1) * STRIPE_BYTES)
        parts.append(ByteRange(start, stop))
        start = stop
    return parts


def shard_of(name: str, start: int) -> str:
    """The unit that is on one replica: a stripe of an object version that is called ``name``."""
    return f"{name}:{start // STRIPE_BYTES}"


def fitting_share(tier_bytes: int, dataset_bytes: int) -> float:
    """The share of a dataset that the tier is asked for. Servers evict what was not used for longest, and would find
    nothing in epochs of a dataset that is larger than they are: so a fixed part of it stays, and the rest passes by.
    0 bytes of the tier, or of the dataset: not known, all of it."""
    if not tier_bytes or not dataset_bytes:
        return 1.0
    return min(1.0, tier_bytes / dataset_bytes)


def is_in_share(shard: str, share: float) -> bool:
    """Whether the shard is of the part that the tier is asked for: the same for every node, and for a larger share a
    superset."""
    return share >= 1.0 or _hash(f"share:{shard}") < share * _ALL


def _score(name: str, hashed_shard: int) -> int:
    """Mixes the hashes of both by the finaliser of SplitMix64: a digest of the two together for each of 64 replicas
    would take longer than to sign the request."""
    mixed = _hash(name) ^ hashed_shard
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % _ALL
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % _ALL
    return mixed ^ mixed >> 31


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    """64 bits. Cached for the names of replicas."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
