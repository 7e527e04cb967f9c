"""One measurement: an epoch is read, everything is counted, and the row says whether its state was what it claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.distributed.gang import Gang, Rank
from hayloft_bench.errors import BenchError
from hayloft_bench.results.model import Access, Measurement, Phase, Reading, Share, Sizes, Workload
from hayloft_bench.results.prices import PriceList
from hayloft_bench.run import accelerator
from hayloft_bench.run import cache_states as states
from hayloft_bench.run import row_builder as rows
from hayloft_bench.run.cache_states import Observed
from hayloft_bench.run.expected_data import ExpectedData, wrong_bytes
from hayloft_bench.run.reader_pool import ReaderPool, read
from hayloft_bench.run.row_builder import Counted, Emulated, Where
from hayloft_bench.targets.base import TargetBase
from hayloft_lab.seaweedfs import SeaweedFsServer

SETTLE_S = 0.2
"""The store raises its counter a moment after the last byte; a cache may still be reading ahead."""
STALLED_S = 120.0
"""A target from which nothing was received for so long has died, with its readers blocked in the kernel."""
REQUESTS = ("GET", "HEAD", "LIST")
COUNTED_KINDS = frozenset({"hayloft", "mount", "client"})
"""Targets that read from our store, so that its counters are theirs."""


class Stalled(BenchError):
    """The readers timed out: no byte was received for ``STALLED_S``."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one target, as its row is identified."""

    phase: Phase
    epoch: int
    repetition: int
    emulated: bool = False
    """With accelerators."""


@dataclass(frozen=True, slots=True)
class _Counters:
    origin_bytes: int
    origin_requests: int
    cpu_s: float
    block_bytes: int | None
    peak_bytes: int
    cache_bytes: int


@dataclass
class Measuring:
    """Measures targets of one dataset in one store."""

    run_id: str
    workload: Workload
    sizes: Sizes
    expected: ExpectedData
    plain: Path
    server: SeaweedFsServer
    pool: ReaderPool
    prices: PriceList
    barrier: Barrier = field(default_factory=lambda: Barrier(Gang(Rank(), None)))
    dataset_id: str = field(init=False)
    dataset_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.dataset_id = self.expected.dataset_id()
        self.dataset_bytes = sum(file.size_bytes for file in self.expected.files)

    @property
    def rank(self) -> int:
        return self.barrier.rank

    @property
    def ranks(self) -> int:
        return self.barrier.ranks

    def beginning(self, target: str, turn: Turn) -> str:
        """The name of the barrier before that turn."""
        emulated = "/accelerators" if turn.emulated else ""
        return f"{self.workload.name}/{target}/{turn.phase}/{turn.repetition}/{turn.epoch}{emulated}"

    @property
    def paths(self) -> list[Path]:
        """Of the plain files."""
        return [self.plain / file.path for file in self.expected.files]

    def needed_bytes(self, epoch: int) -> int:
        """The bytes that the readers of this node need from the store."""
        return self.workload.needed_bytes(self.expected.files, self.sizes, epoch) // self.ranks

    def where(self, target: str, turn: Turn, readers: int = 0) -> Where:
        return Where(
            run_id=self.run_id,
            workload=self.workload.name,
            target=target,
            phase=turn.phase,
            epoch=turn.epoch,
            repetition=turn.repetition,
            rank=self.rank,
            ranks=self.ranks,
            readers=readers,
            dataset_id=self.dataset_id,
            dataset_bytes=self.dataset_bytes,
            started_at=time.time(),
        )

    def epoch(
        self,
        target: TargetBase,
        access: Access,
        turn: Turn,
        *,
        passes: int = 1,
        limit_bytes: int | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Measurement:
        """Without an accelerator, as fast as possible. ``passes``: so many epochs are read as one measurement. Raises
        ProcessFailed, Stalled."""
        epochs = range(turn.epoch, turn.epoch + passes)
        shares_of = [
            self.workload.shares(self.expected.files, self.sizes, epoch, self.ranks, self.rank) for epoch in epochs
        ]
        needed_bytes = sum(self.needed_bytes(epoch) for epoch in epochs)
        shares = shares_of[0] if passes == 1 else _in_sequence(shares_of)
        where = self.where(target.name, turn, len(shares))
        resident = states.resident_share(self.paths) if _starts_cold(target, turn) else None
        reading, before, after = self._read(target, access, turn, shares, progress)
        counted = self._counted(target, before, after, needed_bytes, passes)
        seen = _observed(target, turn, reading, before, after, needed_bytes)
        seen = replace(seen, resident_share=resident, cache_bytes=after.cache_bytes, limit_bytes=limit_bytes)
        reason = wrong_bytes(reading.wrong) or states.objection(seen)
        return rows.of_reading(where, reading, counted, reason)

    def emulation(self, target: TargetBase, access: Access, turn: Turn, count: int) -> tuple[Measurement, float]:
        """With ``count`` emulated accelerators; and the idle share of the machine meanwhile. Raises ValueError when
        the dataset is too small for them, ProcessFailed, Stalled."""
        model = self.workload.accelerator
        if model is None:
            raise ValueError(f"{self.workload.name} has no accelerator to emulate")
        shares = accelerator.accelerator_shares(
            self.workload, self.expected.files, self.sizes, count, epoch=turn.epoch, ranks=self.ranks, rank=self.rank
        )
        where = self.where(target.name, turn, len(shares))
        readings: list[tuple[Reading, _Counters, _Counters]] = []

        def read_once() -> Reading:
            readings.append(self._read(target, access, turn, shares, lambda count: None))
            return readings[-1][0]

        trial = accelerator.tried(count, model, read_once)
        reading, before, after = readings[-1]
        needed_bytes = self.needed_bytes(turn.epoch)
        counted = self._counted(target, before, after, needed_bytes, 1)
        reason = wrong_bytes(reading.wrong) or states.objection(
            _observed(target, turn, reading, before, after, needed_bytes)
        )
        emulated = Emulated(model.name, count, trial.utilisation)
        return rows.of_reading(where, reading, counted, reason, emulated), trial.idle

    def _read(
        self,
        target: TargetBase,
        access: Access,
        turn: Turn,
        shares: Sequence[Share],
        progress: Callable[[int], None],
    ) -> tuple[Reading, _Counters, _Counters]:
        counters: list[_Counters] = []

        def start() -> None:
            self.barrier.begin(self.beginning(target.name, turn))
            counters.append(self._counters(target))

        reading = read(
            self.pool,
            shares,
            access,
            self.expected,
            imports=self.workload.needs,
            before_start=start,
            progress=Watch(progress),
        )
        time.sleep(SETTLE_S)
        return reading, counters[0], self._counters(target)

    def _counters(self, target: TargetBase) -> _Counters:
        used = target.usage()
        return _Counters(
            origin_bytes=self.server.bytes_sent(),
            origin_requests=sum(self.server.requests(kind) for kind in REQUESTS),
            cpu_s=used.cpu_s,
            block_bytes=used.block_read_bytes,
            peak_bytes=used.peak_bytes,
            cache_bytes=used.cache_bytes,
        )

    def _counted(
        self, target: TargetBase, before: _Counters, after: _Counters, needed_bytes: int, passes: int
    ) -> Counted:
        ours = target.kind in COUNTED_KINDS
        origin_bytes = after.origin_bytes - before.origin_bytes if ours else None
        requests = after.origin_requests - before.origin_requests if ours else None
        has_processes = target.kind in ("hayloft", "mount")
        return Counted(
            cpu_s=max(0.0, after.cpu_s - before.cpu_s) if has_processes else None,
            peak_bytes=after.peak_bytes if has_processes else None,
            origin_bytes=origin_bytes,
            origin_requests=requests,
            needed_bytes=needed_bytes // passes,
            money=self.prices.epoch(requests=requests, origin_bytes=origin_bytes) if ours else None,
            passes=passes,
        )


def _starts_cold(target: TargetBase, turn: Turn) -> bool:
    """Whether its files should be out of the page cache now. Those of a mount cannot be checked without a read."""
    return target.kind == "limit" and turn.phase in ("cold", "warm")


def _observed(
    target: TargetBase, turn: Turn, reading: Reading, before: _Counters, after: _Counters, needed_bytes: int
) -> Observed:
    ours = target.kind in COUNTED_KINDS
    disk_bytes: int | None = None
    # The processes behind a user's own mount are not known, so neither is what they read from the disk.
    is_known = before.block_bytes is not None and after.block_bytes is not None and target.kind != "path"
    if is_known and reading.block_read_bytes is not None:
        disk_bytes = max(0, (after.block_bytes or 0) - (before.block_bytes or 0)) + reading.block_read_bytes
    return Observed(
        phase=turn.phase,
        needed_bytes=needed_bytes,
        origin_bytes=after.origin_bytes - before.origin_bytes if ours else None,
        disk_bytes=disk_bytes,
    )


def _in_sequence(epochs: Sequence[Sequence[Share]]) -> list[Share]:
    """Each reader reads its shares of all epochs."""
    return [
        Share("hayloft_bench.run.jobs:in_sequence", {"parts": [(share.job, share.arguments) for share in parts]})
        for parts in zip(*epochs, strict=True)
    ]


class Watch:
    """Forwards progress, and raises Stalled when there was none for ``STALLED_S``."""

    def __init__(self, progress: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._count, self._since_s = -1, clock()

    def __call__(self, count: int) -> None:
        if count != self._count:
            self._count, self._since_s = count, self._clock()
        elif self._clock() - self._since_s > STALLED_S:
            raise Stalled(f"nothing was read for {STALLED_S:.0f} s")
        self._progress(count)
