"""The datasets of the workloads ``warm`` and ``model-load``, which have rounds of their own: how long until a dataset
is on a node, and how long until a model is in a program."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Sizes
from hayloft_bench.workloads.checkpoint import Checkpoint
from hayloft_bench.workloads.content import varied_sizes
from hayloft_bench.workloads.plain_reads import PlainReads

_LARGE_BYTES = 64 << 20


class Warm(PlainReads):
    """As much in large files as in small ones."""

    name: ClassVar[str] = "warm"
    title: ClassVar[str] = "a complete dataset onto a node: 64 MiB files and files of 110 kB"
    readers: ClassVar[int] = 1
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
    by_ranges: ClassVar[bool] = False

    def planned(self, sizes: Sizes) -> dict[str, int]:
        large_count = max(2, round(sizes.scale * 16))
        small_count = max(20, round(sizes.scale * 4_000))
        drawn = varied_sizes(sizes.seed, "small", small_count, 110_000, 35_000, 8_000)
        small = {f"small/{number:05d}.jpg": size_bytes for number, size_bytes in enumerate(drawn)}
        large_bytes = max(1 << 20, min(_LARGE_BYTES, int(sizes.scale * 16 * _LARGE_BYTES) // large_count))
        return {f"large/{number:04d}.tar": large_bytes for number in range(large_count)} | small


class ModelLoad(Checkpoint):
    """The shards of ``checkpoint``, loaded by one program."""

    name: ClassVar[str] = "model-load"
    title: ClassVar[str] = "a model of safetensors shards into one program"
    readers: ClassVar[int] = 1
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
