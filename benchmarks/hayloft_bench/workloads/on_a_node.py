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
    """Large files and small ones."""

    name: ClassVar[str] = "warm"
    title: ClassVar[str] = "a complete dataset onto a node: 64 MiB files and files of 110 kB"
    large_files: ClassVar[int] = 16
    small_files: ClassVar[int] = 4_000
    readers: ClassVar[int] = 1
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
    by_ranges: ClassVar[bool] = False
    from_web_server: ClassVar[bool] = False
    """Served by nginx, without a bucket."""

    def planned(self, sizes: Sizes) -> dict[str, int]:
        large_count = self.large_files and max(2, round(sizes.scale * self.large_files))
        small_count = self.small_files and max(20, round(sizes.scale * self.small_files))
        drawn = varied_sizes(sizes.seed, "small", small_count, 110_000, 35_000, 8_000)
        small = {f"small/{number:05d}.jpg": size_bytes for number, size_bytes in enumerate(drawn)}
        if not large_count:
            return small
        large_bytes = max(1 << 20, min(_LARGE_BYTES, int(sizes.scale * self.large_files * _LARGE_BYTES) // large_count))
        return {f"large/{number:04d}.tar": large_bytes for number in range(large_count)} | small


class WarmLarge(Warm):
    """The large files of ``warm``."""

    name: ClassVar[str] = "warm-large"
    title: ClassVar[str] = "a complete dataset onto a node: 64 MiB files"
    small_files: ClassVar[int] = 0


class WarmSmall(Warm):
    """The small files of ``warm``."""

    name: ClassVar[str] = "warm-small"
    title: ClassVar[str] = "a complete dataset onto a node: files of 110 kB"
    large_files: ClassVar[int] = 0


class WebLarge(WarmLarge):
    """The same, from a server in C."""

    name: ClassVar[str] = "web-large"
    title: ClassVar[str] = "a complete dataset from nginx onto a node: 64 MiB files"
    from_web_server: ClassVar[bool] = True


class WebSmall(WarmSmall):
    """The same, from a server in C."""

    name: ClassVar[str] = "web-small"
    title: ClassVar[str] = "a complete dataset from nginx onto a node: files of 110 kB"
    from_web_server: ClassVar[bool] = True


class ModelLoad(Checkpoint):
    """The shards of ``checkpoint``, loaded by one program."""

    name: ClassVar[str] = "model-load"
    title: ClassVar[str] = "a model of safetensors shards into one program"
    readers: ClassVar[int] = 1
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
