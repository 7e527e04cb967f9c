"""The schedule of one workload: each repetition takes all targets through the phases, in turns.

Cold and small-cache are measured with one target at a time, each from a fresh start. Warm and hot are measured with
all targets running, epoch by epoch in turns, so that a slow minute of the machine does not affect one of them alone.
The order shifts by one from repetition to repetition. A target that fails is out for this workload, with its reason.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from hayloft_bench.distributed.barrier import Barrier, OtherRank
from hayloft_bench.results.model import Access, Measurement, Phase
from hayloft_bench.run import row_builder as rows
from hayloft_bench.run.accelerator import Trial, search
from hayloft_bench.run.measurement import Measuring, Turn
from hayloft_bench.run.options import Options
from hayloft_bench.run.preparation import FAILURES, Preparing, WrongDataset
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.touched_memory import touch_memory
from hayloft_bench.targets.base import TargetBase

LEAST_HOT_S = 1.0
"""Shorter hot epochs are read several times in one measurement: start-up and noise would dominate them."""
RESTART_S = 4.0
"""Long enough for a daemon to be killed and to come back while readers read: its first restart takes 0.2 s and its
start about 1 s."""
MOST_PASSES = 64
KILL_AT = 0.2
"""The share of the expected bytes after which the daemon is killed."""
SMALL_CACHE_EPOCHS = 3
"""The first one is cold; the effect of a cache that is too small shows in the others."""
REASON_LINES = 2
_TOUCHED_DATASETS = 2
"""Of memory, before a cold epoch: the cache's files have their pages in the page cache, and readers have copies."""
_EXCEPTION = re.compile(r"[A-Za-z_.]*(Error|Exception)\b")
_ORDER: tuple[Phase, ...] = ("cold", "warm", "hot", "restart", "small-cache")


@dataclass
class Schedule:
    """``targets`` are set up. Rows go to ``add_row`` as they are measured."""

    options: Options
    measuring: Measuring
    preparing: Preparing
    barrier: Barrier
    targets: dict[str, TargetBase]
    steps: Steps
    add_row: Callable[[Measurement], None]
    revoke: Callable[[str, str], None]
    """Makes all rows of a target invalid, for a reason."""
    until_s: float | None = None
    """No repetition starts that would last beyond this moment of ``time.monotonic``."""
    lost: dict[str, str] = field(default_factory=dict)
    """Why a target is out."""

    def run(self) -> None:
        """All repetitions, or as many as there is time for; at least one."""
        begun_s = time.monotonic()
        for repetition in range(self.options.repetitions):
            spent_s = time.monotonic() - begun_s
            if repetition and self.until_s is not None and begun_s + spent_s * (1 + 1 / repetition) > self.until_s:
                self.steps.note(f"no time for more than {repetition} of {self.options.repetitions} repetitions")
                return
            if self.options.continuous:
                self._continuous(repetition)
                continue
            if "cold" in self.options.phases:
                self._cold(repetition)
            if {"warm", "hot", "restart"} & set(self.options.phases):
                self._session(repetition)
            if "small-cache" in self.options.phases:
                self._small_cache(repetition)

    def order(self, phases: Sequence[Phase], number: int) -> list[TargetBase]:
        """Targets that have one of the phases and are not out, shifted by ``number``."""
        left = [
            target
            for name, target in self.targets.items()
            if name not in self.lost and target.phases & set(phases) & set(self.options.phases)
        ]
        by = number % len(left) if left else 0
        return left[by:] + left[:by]

    def _continuous(self, repetition: int) -> None:
        """Cold and warm in one life of the target's processes. Clients cache nothing: they have no warm epoch."""
        cold = Turn("cold", 1, repetition)
        for target in self.order(["cold"], repetition):
            has_warm = "warm" in target.phases & set(self.options.phases)
            warm = [Turn("warm", epoch, repetition) for epoch in range(1, self.options.epochs + 1)] if has_warm else []
            with self._guarded(target, cold, [cold, *warm]), self.preparing.fresh(target) as access:
                self.add_row(self._row(target, access, cold))
                if warm:
                    self.preparing.fill(target, access)
                for turn in warm:
                    self.preparing.drop((target, access))
                    self.add_row(self._row(target, access, turn))

    # -- phases -------------------------------------------------------------------------------------------------------

    def _cold(self, repetition: int) -> None:
        turn = Turn("cold", 1, repetition)
        for target in self.order(["cold"], repetition):
            with self._guarded(target, turn, [turn, *self._trials(turn)]):
                with self.preparing.fresh(target) as access:
                    touch_memory(_TOUCHED_DATASETS * self.measuring.dataset_bytes, ranks=self.barrier.ranks)
                    self.add_row(self._row(target, access, turn))
                    if not target.phases & {"warm", "hot", "restart"} & set(self.options.phases):
                        self.preparing.verify(target, access)
                if self._trials(turn):
                    self._emulate(target, turn, partial(self.preparing.fresh, target))

    def _small_cache(self, repetition: int) -> None:
        limit_bytes = max(1, self.measuring.dataset_bytes // 2)
        epochs = range(1, max(SMALL_CACHE_EPOCHS, self.options.epochs) + 1)
        turns = [Turn("small-cache", epoch, repetition) for epoch in epochs]
        for target in self.order(["small-cache"], repetition):
            with self._guarded(target, turns[0], turns), self.preparing.fresh(target, limit_bytes) as access:
                for turn in turns:
                    self.preparing.drop(store_stays=True)
                    self.add_row(self._row(target, access, turn, limit_bytes=limit_bytes))
            target.clear()

    def _session(self, repetition: int) -> None:
        with contextlib.ExitStack() as stack:
            running: dict[str, Access] = {}
            for target in self.order(["warm", "hot", "restart"], repetition):
                first = next(phase for phase in _ORDER[1:4] if phase in target.phases & set(self.options.phases))
                with self._guarded(target, Turn(first, 0, repetition), []):
                    stack.callback(self.preparing.stop, target)
                    running[target.name] = self.preparing.filled(target)
            phases: tuple[Phase, ...] = ("warm", "hot")
            for phase in phases:
                for epoch in range(1, self.options.epochs + 1):
                    for target in self.order([phase], repetition + epoch):
                        self._turn(target, running[target.name], Turn(phase, epoch, repetition))
            for target in self.order(["restart"], repetition):
                turn = Turn("restart", 1, repetition)
                with self._guarded(target, turn, [turn], survives=True):
                    self._restart(target, running[target.name], turn)

    def _turn(self, target: TargetBase, access: Access, turn: Turn) -> None:
        """One warm or hot measurement, and its emulation after the last epoch."""
        trials = self._trials(turn) if turn.epoch == self.options.epochs else []
        with self._guarded(target, turn, [turn, *trials]):
            if turn.phase == "warm":
                self.preparing.drop()
                self.add_row(self._row(target, access, turn))
            else:
                self._hot(target, access, turn)
            if trials:
                self._emulate(target, turn, partial(self._again, access, turn.phase))

    def _hot(self, target: TargetBase, access: Access, turn: Turn) -> None:
        """After a read that fills the page cache. A measurement that was not hot was such a read, too: retried once."""
        if turn.epoch == 1:
            self.preparing.read_all(target, access)
        passes = _passes(LEAST_HOT_S, self.preparing.epoch_s.get(target.name, LEAST_HOT_S))
        row = self._row(target, access, turn, passes=passes)
        if row.reason.startswith("not hot") and self.barrier.ranks == 1:
            row = self._row(target, access, turn, passes=passes)
        if row.seconds:
            self.preparing.epoch_s[target.name] = row.seconds
        self.add_row(row)

    def _restart(self, target: TargetBase, access: Access, turn: Turn) -> None:
        self.preparing.read_all(target, access)
        passes = _passes(RESTART_S, self.preparing.epoch_s[target.name])
        expected_bytes = self.measuring.needed_bytes(1) * passes
        killed = False

        def kill(count: int) -> None:
            nonlocal killed
            if not killed and count > KILL_AT * expected_bytes:
                killed = True
                target.restart_daemon()

        row = self._row(target, access, turn, passes=passes, progress=kill)
        if not killed and row.valid:
            row = replace(row, valid=False, reason="the epoch was over before the daemon was killed")
        self.add_row(row)

    # -- accelerators -------------------------------------------------------------------------------------------------

    def _trials(self, turn: Turn) -> list[Turn]:
        """The turn of an emulation after this one, if there is one: in the warmest of the requested phases, because a
        search reads the dataset many times."""
        wanted = [phase for phase in ("hot", "warm", "cold") if phase in self.options.phases]
        emulates = self.options.accelerators is not None and self.measuring.workload.accelerator is not None
        return [replace(turn, emulated=True)] if emulates and wanted[:1] == [turn.phase] else []

    @contextlib.contextmanager
    def _again(self, access: Access, phase: Phase) -> Iterator[Access]:
        """The running target, in the same state again."""
        if phase == "warm":
            self.preparing.drop()
        yield access

    def _emulate(
        self, target: TargetBase, turn: Turn, prepared: Callable[[], contextlib.AbstractContextManager[Access]]
    ) -> None:
        """``prepared`` makes the state of the phase, for each trial."""
        model, count = self.measuring.workload.accelerator, self.options.accelerators
        if model is None:
            return

        def trial(accelerators: int) -> Trial:
            title = f"{turn.phase}, {accelerators} accelerators: {target.title}"
            with prepared() as access, self.preparing.step(title):
                emulated = replace(turn, emulated=True)
                row, idle = self.measuring.emulation(target, access, emulated, accelerators)
            self.add_row(row)
            return Trial(accelerators, row.utilisation or 0.0, idle)

        if count:
            trial(count)
        else:
            found = search(trial, model.threshold)
            self.steps.note(f"{target.title}: {found.accelerators} accelerators are fed; the limit is {found.limit}")

    # -- rows ---------------------------------------------------------------------------------------------------------

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
        title = f"{turn.phase}, epoch {turn.epoch}, repetition {turn.repetition + 1}: {target.title}"
        with self.preparing.step(title, passes * max(1, self.measuring.needed_bytes(turn.epoch))) as reach:

            def both(count: int) -> None:
                reach(count)
                progress(count)

            return self.measuring.epoch(target, access, turn, passes=passes, limit_bytes=limit_bytes, progress=both)

    @contextlib.contextmanager
    def _guarded(
        self, target: TargetBase, turn: Turn, measured: Sequence[Turn], *, survives: bool = False
    ) -> Iterator[None]:
        """An error in the block becomes a row with the reason, and takes the target out unless it ``survives``.
        ``measured``: the turns in the block, which all ranks begin together."""
        beginnings = [self.measuring.beginning(target.name, each) for each in measured]
        try:
            with self.barrier.turn(self.measuring.beginning(target.name, turn), beginnings):
                yield
        except FAILURES as error:
            reason = self._reason(error, target)
            if turn.phase == "restart" and not isinstance(error, OtherRank):
                reason = f"does not survive a restart of its daemon: {reason}"
            self.steps.note(f"{target.title}: {reason}")
            where = self.measuring.where(target.name, replace(turn, epoch=max(1, turn.epoch)))
            self.add_row(rows.without_figure(where, reason))
            if isinstance(error, WrongDataset):
                self.revoke(target.name, reason)
            if not survives:
                self.lose(target, reason, turn)

    def lose(self, target: TargetBase, reason: str, turn: Turn | None = None) -> None:
        """Takes the target out. Each phase that it will not reach gets a row with the reason."""
        self.lost[target.name] = reason
        ahead = _ORDER if turn is None else _ORDER[_ORDER.index(turn.phase) + 1 :]
        for phase in (phase for phase in ahead if phase in target.phases & set(self.options.phases)):
            where = self.measuring.where(target.name, Turn(phase, 1, turn.repetition if turn else 0))
            self.add_row(rows.without_figure(where, reason))
        with contextlib.suppress(*FAILURES):
            target.stop()

    def _reason(self, error: BaseException, target: TargetBase) -> str:
        end = target.log_end().splitlines()[-REASON_LINES:]
        is_from_target = end and not isinstance(error, WrongDataset | OtherRank)
        return f"{_short(error)}; the end of its log: {' | '.join(end)}" if is_from_target else _short(error)


def _passes(wanted_s: float, epoch_s: float) -> int:
    return max(1, min(MOST_PASSES, round(wanted_s / max(epoch_s, 1e-3))))


def _short(error: BaseException) -> str:
    """The first line, and of the tracebacks after it the last exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    raised = [line for line in lines[1:] if _EXCEPTION.match(line)] or lines[1:][-1:]
    return " ".join([lines[0], *raised[-1:]])
