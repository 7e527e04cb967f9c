"""A small benchmark: a dataset, a store that only counts, and targets that are wrong in one way each."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.distributed.gang import Gang, Rank
from hayloft_bench.errors import ProcessFailed
from hayloft_bench.results.model import PHASES, Access, Measurement, Phase, Sizes, TargetUsage
from hayloft_bench.results.prices import BUILT_IN
from hayloft_bench.run.expected_data import ExpectedData
from hayloft_bench.run.measurement import Measuring
from hayloft_bench.run.options import Options
from hayloft_bench.run.preparation import Preparing
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.reader_pool import ReaderPool
from hayloft_bench.run.schedule import Schedule
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.run.trash import Trash
from hayloft_bench.targets.base import Place, TargetBase, TargetKind
from hayloft_bench.workloads import WORKLOADS

SIZES = Sizes(scale=0.0005, seed=7, readers=2)


class CountingStore:
    """A store that sends what the test adds to ``sent_bytes``."""

    endpoint = "http://127.0.0.1:1"
    access_key_id = "key"
    secret_access_key = "secret"

    def __init__(self) -> None:
        self.sent_bytes = 0

    def create_bucket(self, name: str) -> None:
        """Nothing is stored."""

    def bytes_sent(self) -> int:
        return self.sent_bytes

    def requests(self, kind: str = "GET") -> int:
        return 0


class Honest(TargetBase):
    """Shows copies of the plain files. Its usage is read when the clock starts and when it has stopped: in between, a
    cold one reports that it fetched everything."""

    name: ClassVar[str] = "honest"
    title: ClassVar[str] = "honest"
    kind: ClassVar[TargetKind] = "mount"
    phases: ClassVar[frozenset[Phase]] = frozenset(PHASES)

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.root = self.directory / "root"
        self.is_cold = True
        self.usages = 0

    def set_up(self) -> None:
        shutil.copytree(self.place.plain, self.root)

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        return Access("directory", root=str(self.root))

    def clear(self) -> None:
        self.is_cold = True

    def fetched_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.place.plain.rglob("*") if path.is_file())

    def usage(self) -> TargetUsage:
        self.usages += 1
        if self.usages % 2 == 0 and self.is_cold:
            store = self.place.store
            assert isinstance(store, CountingStore)
            store.sent_bytes += self.fetched_bytes()
            self.is_cold = False
        return TargetUsage(block_read_bytes=None)


class NotCold(Honest):
    """Still has everything after ``clear``."""

    name: ClassVar[str] = "not-cold"

    def fetched_bytes(self) -> int:
        return 0


class Forgetful(Honest):
    """Fetches everything again, each time."""

    name: ClassVar[str] = "forgetful"

    def usage(self) -> TargetUsage:
        self.is_cold = True
        return super().usage()


class Lying(Honest):
    """One bit of every file is wrong."""

    name: ClassVar[str] = "lying"

    def set_up(self) -> None:
        super().set_up()
        for path in (path for path in self.root.rglob("*") if path.is_file()):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)


class LyingOnce(Honest):
    """One bit of one file is wrong, in a sample that no seeded check reads."""

    name: ClassVar[str] = "lying-once"

    def set_up(self) -> None:
        super().set_up()
        path = max(path for path in self.root.rglob("*") if path.is_file())
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


class OtherDataset(Honest):
    """Has one file too many and misses one."""

    name: ClassVar[str] = "other"

    def set_up(self) -> None:
        super().set_up()
        path = max(path for path in self.root.rglob("*") if path.is_file())
        os.rename(path, path.with_name("stranger.bin"))


class Crashing(Honest):
    """Dies when it is read: its files disappear under the readers."""

    name: ClassVar[str] = "crashing"

    def usage(self) -> TargetUsage:
        shutil.rmtree(self.root, ignore_errors=True)
        return TargetUsage()

    def log_end(self) -> str:
        return "panic: out of cheese"


class NotStarting(Honest):
    """Fails to start."""

    name: ClassVar[str] = "not-starting"

    def start(self, *, cache_limit_bytes: int | None = None) -> Access:
        raise ProcessFailed("not-starting did not mount: no such luck")


class Bench:
    """One schedule over the given targets; ``rows`` has its rows."""

    def __init__(
        self, directory: Path, targets: list[type[Honest]], phases: tuple[Phase, ...], **options: object
    ) -> None:
        workload = WORKLOADS["imagenet"]
        files = workload.make(directory / "plain", SIZES)
        self.store = CountingStore()
        self.rows: list[Measurement] = []
        self.revoked: dict[str, str] = {}
        names = tuple(target.name for target in targets)
        wanted = Options((workload.name,), names, phases, SIZES, epochs=1, repetitions=1, **options)  # type: ignore[arg-type]
        barrier, stopping = Barrier(Gang(Rank(), None)), Stopping()
        steps = Steps(Console(file=io.StringIO()))
        measuring = Measuring(
            run_id="run",
            workload=workload,
            sizes=SIZES,
            expected=ExpectedData(directory / "plain", files),
            plain=directory / "plain",
            server=self.store,  # type: ignore[arg-type]
            pool=ReaderPool(stopping),
            prices=BUILT_IN["free"],
            barrier=barrier,
        )
        (directory / "store").mkdir()
        place = Place(directory / "plain", directory / "targets", self.store, Trash(directory / "trash"))
        made = {target.name: target(place) for target in targets}
        for target in made.values():
            target.set_up()
        self.schedule = Schedule(
            options=wanted,
            measuring=measuring,
            preparing=Preparing(measuring, directory / "store", stopping, steps, verify=wanted.verify),
            barrier=barrier,
            targets=dict(made),
            steps=steps,
            add_row=self.rows.append,
            revoke=self.revoked.__setitem__,
        )

    def run(self) -> dict[tuple[str, str], Measurement]:
        """The last row of each target and phase."""
        self.schedule.run()
        return {(row.target, row.phase): row for row in self.rows}
