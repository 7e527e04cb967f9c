"""The victim's dataset in the workload ``tenants``: small files, large ones, and a small volume that is mounted often.
``hayloft_bench.tenants`` reads them while another tenant attacks the daemon."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Sizes
from hayloft_bench.workloads.content import varied_sizes
from hayloft_bench.workloads.plain_reads import PlainReads

READ_BYTES = 1 << 20
"""The most that one read takes of a file: a chunk of the cache."""


class Tenants(PlainReads):
    """What one tenant's readers notice of another."""

    name: ClassVar[str] = "tenants"
    title: ClassVar[str] = "reads and mounts of one tenant while another attacks the daemon"
    readers: ClassVar[int] = 1
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
    by_ranges: ClassVar[bool] = False

    def planned(self, sizes: Sizes) -> dict[str, int]:
        drawn = varied_sizes(sizes.seed, "small", max(20, int(sizes.scale * 400)), 64_000, 20_000, 8_000)
        small = {f"small/{number:05d}.jpg": size_bytes for number, size_bytes in enumerate(drawn)}
        large = {f"large/{number:04d}.bin": 16 << 20 for number in range(max(1, int(sizes.scale * 8)))}
        return small | large | {f"mount/{number:02d}.txt": 100 for number in range(20)}
