"""The course of one workload: each repetition takes all targets through the phases, in turns.

Cold and small-cache are measured with one target at a time, each from a fresh start. Warm and hot are measured with
all targets running, epoch by epoch in turns, so that a slow minute of the machine does not hit one of them alone. The
order shifts by one from repetition to repetition. A target that fails is out for this workload, with its reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import rows, states, truth
from benchmarks.accelerator import Trial, search
from benchmarks.errors import BenchError
from benchmarks.measuring import COUNTED_KINDS, Measuring, Turn, Watch
from benchmarks.model import Access, Measurement, Phase
from benchmarks.options import Options
from benchmarks.targets.base import TargetBase
from csi_driver.demo.errors import DemoFailed
from csi_driver.demo.showing import Steps
from csi_driver.demo.stopping import Stopping
from csi_driver.model.errors import HayloftError

FAILURES = (DemoFailed, BenchError, HayloftError, OSError, ValueError)
FILL_PASSES = 3
"""A cache that fills in the background may have missed some of what was read the first time."""
LEAST_HOT_S = 1.0
"""Hot epochs that are shorter are read several times in one measurement: starting and noise would rule them."""
RESTART_S = 4.0
"""Long enough for a daemon to be killed and to come back while readers read: its first restart takes 0.2 s and its
start about 1 s."""
MOST_PASSES = 64
KILL_AT = 0.2
"""Of the bytes that are to be read."""
REASON_LINES = 2


@dataclass
class Course:
    """``targets`` are set up. Rows go to ``tell`` as they are made."""

    options: Options
    measuring: Measuring
    targets: dict[str, TargetBase]
    store_directory: Path
    stopping: Stopping
    steps: Steps
    tell: Callable[[Measurement], None]
    """Takes a row."""
    revoke: Callable[[str, str], None]
    """Makes all rows of a target invalid, for a reason."""

    def __post_init__(self) -> None:
        self.lost: dict[str, str] = {}
        """Why a target is out."""
        self._verified: set[str] = set()
        self._epoch_s: dict[str, float] = {}
        """How long a hot epoch takes, about."""

    def run(self) -> None:
        """All repetitions."""
        for repetition in range(self.options.repetitions):
            if "cold" in self.options.phases:
                self._cold(repetition)
            if {"warm", "hot", "restart"} & set(self.options.phases):
                self._session(repetition)
            if "small-cache" in self.options.phases:
                self._small_cache(repetition)

    def order(self, phases: Sequence[Phase], number: int) -> list[TargetBase]:
        """Targets that can be brought into one of the phases and are not out, shifted by ``number``."""
        there = [
            target
            for name, target in self.targets.items()
            if name not in self.lost and target.phases & set(phases) & set(self.options.phases)
        ]
        by = number % len(there) if there else 0
        return there[by:] + there[:by]

    # -- phases -------------------------------------------------------------------------------------------------------

    def _cold(self, repetition: int) -> None:
        turn = Turn("cold", 1, repetition)
        for target in self.order(["cold"], repetition):
            with self._guarded(target, turn):
                with self._fresh(target) as access:
                    self._measure(target, access, turn)
                    if not self._comes_again(target):
                        self._verify(target, access)
                if self._emulates(turn.phase):
                    self._emulate(target, turn, partial(self._fresh, target))

    def _small_cache(self, repetition: int) -> None:
        limit_bytes = max(1, self.measuring.dataset_bytes // 2)
        for target in self.order(["small-cache"], repetition):
            turn = Turn("small-cache", 1, repetition)
            with self._guarded(target, turn), self._fresh(target, limit_bytes) as access:
                for epoch in range(1, max(3, self.options.epochs) + 1):
                    turn = Turn("small-cache", epoch, repetition)
                    self._drop()
                    states.read_back(self.store_directory)
                    self._measure(target, access, turn, limit_bytes=limit_bytes)
            target.clear()

    def _session(self, repetition: int) -> None:
        with contextlib.ExitStack() as stack:
            running: dict[str, Access] = {}
            for target in self.order(["warm", "hot", "restart"], repetition):
                turn = Turn(self._first_phase(target), 1, repetition)
                with self._guarded(target, turn):
                    stack.callback(self._stop, target)
                    running[target.name] = self._filled(target)
            for phase in ("warm", "hot"):
                for epoch in range(1, self.options.epochs + 1):
                    for target in self.order([phase], repetition + epoch):
                        if target.name in running:
                            self._turn(target, running[target.name], Turn(phase, epoch, repetition))
            for target in self.order(["restart"], repetition):
                if target.name in running:
                    turn = Turn("restart", 1, repetition)
                    with self._guarded(target, turn, survives=True):
                        self._restart(target, running[target.name], turn)

    def _turn(self, target: TargetBase, access: Access, turn: Turn) -> None:
        """One warm or hot measurement, and its emulation after the last epoch."""
        with self._guarded(target, turn):
            if turn.phase == "warm":
                self._drop()
                self._measure(target, access, turn)
            else:
                self._measure_hot(target, access, turn)
            if self._emulates(turn.phase) and turn.epoch == self.options.epochs:
                self._emulate(target, turn, partial(self._again, access, turn.phase))

    def _measure_hot(self, target: TargetBase, access: Access, turn: Turn) -> None:
        """After a reading that makes it hot. A measurement that was not hot was such a reading, too: once more."""
        if turn.epoch == 1:
            self._epoch_s[target.name] = self._read_all(target, access)
        passes = _passes(LEAST_HOT_S, self._epoch_s.get(target.name, LEAST_HOT_S))
        row = self._row(target, access, turn, passes=passes)
        if row.reason.startswith("not hot"):
            row = self._row(target, access, turn, passes=passes)
        if row.seconds:
            self._epoch_s[target.name] = row.seconds
        self.tell(row)

    def _restart(self, target: TargetBase, access: Access, turn: Turn) -> None:
        self._read_all(target, access)
        passes = _passes(RESTART_S, self._epoch_s.get(target.name) or self._read_all(target, access))
        expected_bytes = self.measuring.needed_bytes(1) * passes
        killed = False

        def kill(count: int) -> None:
            nonlocal killed
            if not killed and count >= KILL_AT * expected_bytes:
                killed = True
                target.restart_daemon()

        row = self._row(target, access, turn, passes=passes, progress=kill)
        if not killed and row.valid:
            row = replace(row, valid=False, reason="the epoch was over before the daemon was killed")
        self.tell(row)

    @contextlib.contextmanager
    def _again(self, access: Access, phase: Phase) -> Iterator[Access]:
        """The running target in the same state once more."""
        if phase == "warm":
            self._drop()
        yield access

    def _emulate(
        self, target: TargetBase, turn: Turn, prepared: Callable[[], contextlib.AbstractContextManager[Access]]
    ) -> None:
        """``prepared`` makes the state of the phase, for each trial."""
        workload, asked = self.measuring.workload, self.options.accelerators
        if workload.accelerator is None or asked is None:
            return

        def trial(accelerators: int) -> Trial:
            with prepared() as access, self._step(f"{turn.phase}, {accelerators} accelerators: {target.title}"):
                row, idle = self.measuring.emulation(target, access, turn, accelerators)
            self.tell(row)
            return Trial(accelerators, row.utilisation or 0.0, idle)

        if asked:
            trial(asked)
        else:
            found = search(trial, workload.accelerator.threshold)
            self.steps.note(f"{target.title}: {found.accelerators} accelerators are fed; the limit is {found.limit}")

    def _emulates(self, phase: Phase) -> bool:
        """In the warmest of the asked phases: a search reads the dataset many times, which is cold only once."""
        asked = [phase for phase in ("hot", "warm", "cold") if phase in self.options.phases]
        return self.options.accelerators is not None and asked[:1] == [phase]

    # -- states -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fresh(self, target: TargetBase, limit_bytes: int | None = None) -> Iterator[Access]:
        """The target with nothing cached anywhere but in the store."""
        target.stop()
        target.clear()
        self._drop()
        states.read_back(self.store_directory)
        try:
            with self.stopping.shield():
                access = target.start(cache_limit_bytes=limit_bytes)
            yield access
        finally:
            self._stop(target)

    def _filled(self, target: TargetBase) -> Access:
        """The target running with all of the dataset in its cache, and verified."""
        with self.stopping.shield():
            access = target.start()
        self._verify(target, access)
        for _ in range(FILL_PASSES):
            before_bytes = self.measuring.server.bytes_sent()
            self._epoch_s[target.name] = self._read_all(target, access)
            sent_bytes = self.measuring.server.bytes_sent() - before_bytes
            if target.kind not in COUNTED_KINDS or sent_bytes <= states.CACHED_SHARE * self.measuring.dataset_bytes:
                break
        if target.kind == "hayloft":
            # What a volume is shown as is decided when it is published: this is what the next pod on the node gets.
            target.stop()
            with self.stopping.shield():
                access = target.start()
        return access

    def _drop(self) -> None:
        states.drop_page_cache(self.measuring.plain, self.measuring.paths)

    def _read_all(self, target: TargetBase, access: Access) -> float:
        """Every byte once, not measured; gives the seconds that it took."""
        with self._step(f"{target.title}: reading everything once") as progress:
            reading = truth.read_all(
                self.measuring.crew, self.measuring.truth, access, compare=False, progress=Watch(progress)
            )
        return reading.seconds

    def _verify(self, target: TargetBase, access: Access) -> None:
        """Once per target: every byte, compared. Raises WrongDataset."""
        if not self.options.verify or target.name in self._verified:
            return
        if access.kind == "directory" and (difference := self.measuring.truth.difference(Path(access.root))):
            raise WrongDataset(difference)
        with self._step(f"{target.title}: comparing every byte") as progress:
            reading = truth.read_all(
                self.measuring.crew, self.measuring.truth, access, compare=True, progress=Watch(progress)
            )
        if reading.wrong:
            raise WrongDataset(truth.wrong_bytes(reading.wrong))
        self._verified.add(target.name)

    def _comes_again(self, target: TargetBase) -> bool:
        """Whether it is filled in this repetition, and verified then."""
        return bool(target.phases & {"warm", "hot", "restart"} & set(self.options.phases))

    def _first_phase(self, target: TargetBase) -> Phase:
        return next(phase for phase in self.options.phases if phase in target.phases - {"cold", "small-cache"})

    def _stop(self, target: TargetBase) -> None:
        try:
            target.stop()
        except FAILURES as error:
            self.steps.note(f"{target.title} did not stop in order: {_short(error)}")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _measure(self, target: TargetBase, access: Access, turn: Turn, *, limit_bytes: int | None = None) -> None:
        self.tell(self._row(target, access, turn, limit_bytes=limit_bytes))

    def _row(
        self,
        target: TargetBase,
        access: Access,
        turn: Turn,
        *,
        passes: int = 1,
        limit_bytes: int | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Measurement:
        total_bytes = passes * max(1, self.measuring.needed_bytes(turn.epoch))
        title = f"{turn.phase}, epoch {turn.epoch}, repetition {turn.repetition + 1}: {target.title}"
        with self._step(title, total_bytes) as reach:

            def both(count: int) -> None:
                reach(count)
                progress(count)

            return self.measuring.epoch(target, access, turn, passes=passes, limit_bytes=limit_bytes, progress=both)

    @contextlib.contextmanager
    def _step(self, title: str, total: float | None = None) -> Iterator[Callable[[int], None]]:
        total = total or self.measuring.dataset_bytes
        with self.steps.step(f"{self.measuring.workload.name}, {title}", total, silent=True) as step:
            yield step.reach

    @contextlib.contextmanager
    def _guarded(self, target: TargetBase, turn: Turn, *, survives: bool = False) -> Iterator[None]:
        """What goes wrong becomes a row with the reason. The target is out, unless it ``survives``."""
        try:
            yield
        except FAILURES as error:
            reason = self._reason(error, target)
            if turn.phase == "restart":
                reason = f"does not survive a restart of its daemon: {reason}"
            self.steps.note(f"{target.title}: {reason}")
            self.tell(rows.without_figure(self.measuring.where(target.name, turn), reason))
            if isinstance(error, WrongDataset):
                self.revoke(target.name, reason)
            if not survives:
                self.lose(target, reason, turn)

    def lose(self, target: TargetBase, reason: str, turn: Turn | None = None) -> None:
        """The target is out. Phases that it will not come to get a row with the reason."""
        self.lost[target.name] = reason
        for phase in self.options.phases:
            if phase in target.phases and (turn is None or phase != turn.phase) and not _came_to(turn, phase):
                where = self.measuring.where(target.name, Turn(phase, 1, turn.repetition if turn else 0))
                self.tell(rows.without_figure(where, reason))
        with contextlib.suppress(*FAILURES):
            target.stop()

    def _reason(self, error: BaseException, target: TargetBase) -> str:
        end = target.log_end().splitlines()[-REASON_LINES:]
        log = f"; the end of its log: {' | '.join(end)}" if end and not isinstance(error, WrongDataset) else ""
        return f"{_short(error)}{log}"


class WrongDataset(BenchError):
    """What the target shows is not the dataset."""


def _came_to(turn: Turn | None, phase: Phase) -> bool:
    """Whether the phase lies before that of the turn in the same repetition."""
    order: tuple[Phase, ...] = ("cold", "warm", "hot", "restart", "small-cache")
    return turn is not None and order.index(phase) < order.index(turn.phase)


def _passes(wanted_s: float, epoch_s: float) -> int:
    return max(1, min(MOST_PASSES, round(wanted_s / max(epoch_s, 1e-3))))


def _short(error: BaseException) -> str:
    """The line that says most: the last one of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
