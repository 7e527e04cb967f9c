"""A million tiny files: walked, listed and stat'ed, as loaders do before they read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hayloft_bench.loaders.tree_reader import summary
from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split

FOLDER_FILES = 1_000
BRANCH_FOLDERS = 10
LEAST_BRANCHES = 8
"""So that several readers get work."""
DISK_BLOCK_BYTES = 4096


class Metadata:
    """A million files of 1 to 64 bytes at scale 1, in folders of 1,000, ten folders to a branch. The readers get
    branches; no file is opened. The sizes differ so that a wrong one is noticed.

    Uploading a million objects takes much longer than listing them: see benchmarks/README.md."""

    name: ClassVar[str] = "metadata"
    title: ClassVar[str] = "walk, stat and list of a million files"
    readers: ClassVar[int] = 2
    reads_whole_files: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    access: ClassVar[frozenset[str]] = frozenset({"directory", "boto3", "s3fs", "obstore"})
    """Clients list the objects with their sizes. s3torchconnector's listing does not expose sizes."""
    accelerator: ClassVar[Accelerator | None] = None

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        identity = {"workload": self.name, "seed": sizes.seed}
        return dataset_writer.make(directory, identity, self._paths(sizes), partial(_content, sizes.seed))

    def dataset_bytes(self, sizes: Sizes) -> int:
        """Their space on a disk: a block each."""
        return scaled_count(1_000_000, 400, sizes.scale)[0] * DISK_BLOCK_BYTES

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        branches: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for file in files:
            branches[file.path.split("/")[0]].append((file.path, file.size_bytes))
        items: list[dict[str, Any]] = [
            {"branch": branch, "summary": summary(entries)} for branch, entries in sorted(branches.items())
        ]
        return [
            Share("hayloft_bench.loaders.tree_reader:load", {"items": items})
            for items in split(shuffled(items, sizes.seed, epoch), readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        """No byte of a file is read, so there is no read amplification."""
        return 0

    def _paths(self, sizes: Sizes) -> list[str]:
        count, _ = scaled_count(1_000_000, 400, sizes.scale)
        folders = max(2 * LEAST_BRANCHES, -(-count // FOLDER_FILES))
        branches = max(LEAST_BRANCHES, -(-folders // BRANCH_FOLDERS))
        return [
            f"branch-{number % folders % branches:03d}/folder-{number % folders:04d}/{number:07d}.json"
            for number in range(count)
        ]


def _content(seed: int, path: str) -> Iterable[bytes]:
    noise = hashlib.sha512(f"{seed}/{path}".encode()).digest()
    yield noise[: 1 + noise[0] % 64]
