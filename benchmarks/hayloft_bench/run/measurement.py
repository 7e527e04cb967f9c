"""One measurement: an epoch is read, everything is counted, and the row says whether it is what it claims to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hayloft_bench.demo.crew import ReaderPool
from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.distributed.gang import Gang, Rank
from hayloft_bench.errors import BenchError
from hayloft_bench.results.model import Access, Measurement, Phase, Reading, Share, Sizes, Workload
from hayloft_bench.results.prices import PriceList
from hayloft_bench.run import accelerator
from hayloft_bench.run import cache_states as states
from hayloft_bench.run import reader_pool as crew
from hayloft_bench.run import row_builder as rows
from hayloft_bench.run.cache_states import Observed
from hayloft_bench.run.expected_data import ExpectedData, wrong_bytes
from hayloft_bench.run.row_builder import Counted, Emulated, Where
from hayloft_bench.targets.base import TargetBase
from hayloft_lab.seaweedfs import SeaweedFsServer

SETTLE_S = 0.2
"""The store raises its counter a moment after the last byte; a cache may still be reading ahead."""
STALLED_S = 120.0
"""A target from which nothing has come for so long has died with its readers in the kernel."""
REQUESTS = ("GET", "HEAD", "LIST")
COUNTED_KINDS = frozenset({"hayloft", "mount", "client"})
"""Targets that read from our store, so that its counters are theirs."""


class Stalled(BenchError):
    """No byte came for too long."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one target: what the row is called by."""

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
    """One dataset in one store, and what is known of it."""

    run_id: str
    workload: Workload
    sizes: Sizes
    truth: ExpectedData
    plain: Path
    server: SeaweedFsServer
    crew: ReaderPool
    prices: PriceList
    meeting: Barrier = field(default_factory=lambda: Barrier(Gang(Rank(), None)))
    dataset_id: str = field(init=False)
    dataset_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.dataset_id = self.truth.dataset_id()
        self.dataset_bytes = sum(file.size_bytes for file in self.truth.files)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.meeting.rank

    @property
    def ranks(self) -> int:
        """How many processes measure together."""
        return self.meeting.ranks

    def beginning(self, target: str, turn: Turn) -> str:
        """The point at which all ranks begin that turn."""
        emulated = "/accelerators" if turn.emulated else ""
        return f"{self.workload.name}/{target}/{turn.phase}/{turn.repetition}/{turn.epoch}{emulated}"

    @property
    def paths(self) -> list[Path]:
        """Of the plain files."""
        return [self.plain / file.path for file in self.truth.files]

    def needed_bytes(self, epoch: int) -> int:
        """What the readers of this node need."""
        return self.workload.needed_bytes(self.truth.files, self.sizes, epoch) // self.ranks

    def where(self, target: str, turn: Turn, readers: int = 0) -> Where:
        """What a row of that turn is called by."""
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
        """As fast as it goes. ``passes``: so many epochs are read as one. Raises DemoFailed, Stalled."""
        epochs = range(turn.epoch, turn.epoch + passes)
        dealt = [self.workload.shares(self.truth.files, self.sizes, epoch, self.ranks, self.rank) for epoch in epochs]
        needed_bytes = sum(self.needed_bytes(epoch) for epoch in epochs)
        shares = dealt[0] if passes == 1 else _one_after_the_other(dealt)
        where = self.where(target.name, turn, len(shares))
        resident = states.resident_share(self.paths) if _starts_cold(target, turn) else None
        reading, before, after = self._read(target, access, turn, shares, progress)
        counted = self._counted(target, before, after, needed_bytes, passes)
        seen = _observed(target, turn, reading, before, after, needed_bytes)
        seen = replace(seen, resident_share=resident, cache_bytes=after.cache_bytes, limit_bytes=limit_bytes)
        reason = wrong_bytes(reading.wrong) or states.objection(seen)
        return rows.of_reading(where, reading, counted, reason)

    def emulation(self, target: TargetBase, access: Access, turn: Turn, count: int) -> tuple[Measurement, float]:
        """With so many emulated accelerators; and the idle share of the machine meanwhile. Raises ValueError when
        the dataset is too small for them, DemoFailed, Stalled."""
        model = self.workload.accelerator
        if model is None:
            raise ValueError(f"{self.workload.name} has no accelerator to emulate")
        shares = accelerator.accelerator_shares(
            self.workload, self.truth.files, self.sizes, count, epoch=turn.epoch, ranks=self.ranks, rank=self.rank
        )
        where = self.where(target.name, turn, len(shares))
        readings: list[tuple[Reading, _Counters, _Counters]] = []

        def read() -> Reading:
            readings.append(self._read(target, access, turn, shares, lambda count: None))
            return readings[-1][0]

        trial = accelerator.tried(count, model, read)
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
            self.meeting.begin(self.beginning(target.name, turn))
            counters.append(self._counters(target))

        reading = crew.read(
            self.crew,
            shares,
            access,
            self.truth,
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
    """Whether its files should be out of the page cache now. Those of a mount cannot be asked without reading."""
    return target.kind == "limit" and turn.phase in ("cold", "warm")


def _observed(
    target: TargetBase, turn: Turn, reading: Reading, before: _Counters, after: _Counters, needed_bytes: int
) -> Observed:
    ours = target.kind in COUNTED_KINDS
    disk_bytes: int | None = None
    # Of a mount that is not ours we do not know who reads from the disk.
    is_known = before.block_bytes is not None and after.block_bytes is not None and target.kind != "path"
    if is_known and reading.block_read_bytes is not None:
        disk_bytes = max(0, (after.block_bytes or 0) - (before.block_bytes or 0)) + reading.block_read_bytes
    return Observed(
        phase=turn.phase,
        needed_bytes=needed_bytes,
        origin_bytes=after.origin_bytes - before.origin_bytes if ours else None,
        disk_bytes=disk_bytes,
    )


def _one_after_the_other(epochs: Sequence[Sequence[Share]]) -> list[Share]:
    """Each reader reads its shares of all epochs."""
    return [
        Share("hayloft_bench.run.reader_pool:repeated", {"parts": [(share.job, share.arguments) for share in parts]})
        for parts in zip(*epochs, strict=True)
    ]


class Watch:
    """Passes progress on, and raises Stalled when there is none for too long."""

    def __init__(self, progress: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._count, self._since_s = -1, clock()

    def __call__(self, count: int) -> None:
        if count != self._count:
            self._count, self._since_s = count, self._clock()
        elif self._clock() - self._since_s > STALLED_S:
            raise Stalled(f"nothing was read for {STALLED_S:.0f} s")
        self._progress(count)
