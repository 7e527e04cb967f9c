"""``hayloft bench run``: one workload after the other, each with a store, a dataset and targets of its own.

Whatever happens, what was started is ended, what was mounted is unmounted and what was written is removed; the rows
that were made so far are kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.demo.crew import ReaderPool
from hayloft_bench.demo.dataset import DatasetFile as UploadedFile
from hayloft_bench.demo.driver import unmount_below
from hayloft_bench.demo.showing import Steps
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.demo.upload import upload
from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.network import shaped_path as network
from hayloft_bench.results.model import (
    SCHEMA_VERSION,
    DatasetFile,
    Measurement,
    Phase,
    Results,
    TargetFacts,
    Workload,
    WorkloadFacts,
)
from hayloft_bench.results.prices import PriceList, price_list
from hayloft_bench.run import cache_states as states
from hayloft_bench.run import machine
from hayloft_bench.run import row_builder as rows
from hayloft_bench.run.disk_space import fitting, wanted_bytes
from hayloft_bench.run.expected_data import ExpectedData
from hayloft_bench.run.measurement import Measuring
from hayloft_bench.run.options import Options
from hayloft_bench.run.preparation import FAILURES, Preparing
from hayloft_bench.run.row_builder import Where
from hayloft_bench.run.schedule import Schedule
from hayloft_bench.run.trash import Trash
from hayloft_bench.targets import TARGETS
from hayloft_bench.targets.base import Place, TargetBase
from hayloft_bench.workloads import WORKLOADS
from hayloft_lab.seaweedfs import SeaweedFsServer


@dataclass
class Rows:
    """The rows so far."""

    made: list[Measurement] = field(default_factory=list)

    def add(self, row: Measurement) -> None:
        """One more."""
        self.made.append(row)

    def revoke(self, workload: str, target: str, reason: str) -> None:
        """None of that target's figures counts."""
        for number, row in enumerate(self.made):
            if (row.workload, row.target) == (workload, target) and row.valid:
                self.made[number] = replace(row, valid=False, reason=reason)


class Runner:
    """One run. ``results`` may be asked for at any time, also after it was stopped."""

    def __init__(
        self,
        options: Options,
        console: Console,
        stopping: Stopping,
        stack: contextlib.ExitStack,
        *,
        command: Sequence[str],
        meeting: Barrier,
    ) -> None:
        """What is started is ended by ``stack``."""
        self._options, self._console, self._stopping, self._stack = options, console, stopping, stack
        self._command, self._meeting = tuple(command), meeting
        self._steps = Steps(console)
        self._rows = Rows()
        self._notes: list[str] = []
        self._run_id = uuid.uuid4().hex[:12]
        self._prices: PriceList = price_list(options.prices)
        self._versions: dict[str, str] = {}
        self._targets: dict[str, TargetFacts] = {}
        self._until_s: float | None = None
        self._shaped: network.ShapedPath | None = None

    def run(self) -> Results:
        """Raises Stopped, OSError, RankError."""
        begun_s = time.monotonic()
        work = self._make_work_directory()
        aside = Trash(work / "aside")
        available = self._available()
        if self._options.network is not None:
            with self._stopping.shield():
                self._shaped = self._stack.enter_context(network.shaped(self._options.network))
            self._note(f"the path to the store: {self._shaped.wording()}")
        with self._steps.shown():
            for number, name in enumerate(self._options.workloads, 1):
                if self._options.budget_s is not None and self._meeting.ranks == 1:
                    self._until_s = begun_s + self._options.budget_s * number / len(self._options.workloads)
                self._workload(WORKLOADS[name], work / name, available, aside)
        return self.results()

    def results(self) -> Results:
        """Of what was measured so far."""
        options = self._options
        return Results(
            schema=SCHEMA_VERSION,
            run_id=self._run_id,
            command=self._command,
            sizes=options.sizes,
            machine=machine.describe(self._versions, self._shaped.wording() if self._shaped else "loopback"),
            settings={name: dict(TARGETS[name].settings) for name in options.targets},
            measurements=tuple(self._rows.made),
            notes=(*self._notes, self._prices.wording()),
            targets={name: self._facts(name) for name in options.targets},
            workloads={name: _workload_facts(WORKLOADS[name]) for name in options.workloads},
        )

    # -- preparing ----------------------------------------------------------------------------------------------------

    def _make_work_directory(self) -> Path:
        with self._stopping.shield():
            work = Path(tempfile.mkdtemp(prefix="hayloft-bench-", dir=self._options.directory)).resolve()
            self._stack.callback(self._remove, work)
        entry = MountTable.read().containing(work)
        if entry is not None and entry.fs_type in ("tmpfs", "ramfs"):
            self._note(f"{self._options.directory} is in memory ({entry.fs_type}): nothing here was read from a disk")
        if not states.may_drop_page_cache():
            self._note("without root the page cache of the machine cannot be dropped: only plain files are let go of")
        return work

    def _remove(self, work: Path) -> None:
        left = unmount_below(work)
        if left:
            # Deleting below a mount could delete what is shown there.
            self._console.print(f"[bold red]still mounted, so {work} stays:[/] {', '.join(left)}", highlight=False)
        else:
            shutil.rmtree(work, ignore_errors=True)

    def _available(self) -> dict[str, str | None]:
        """By name of the target: why it cannot be used here, or None. Said once, and noted in the results."""
        found: dict[str, str | None] = {}
        for name in self._options.targets:
            found[name] = reason = self._meeting.agreed(f"available/{name}", TARGETS[name].unavailable())
            if reason is not None:
                self._note(f"{name} is left out: {reason}")
        return found

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._steps.note(text)

    def _facts(self, name: str) -> TargetFacts:
        kind = TARGETS[name]
        return self._targets.get(name) or TargetFacts(kind.title, kind.kind)

    # -- one workload -------------------------------------------------------------------------------------------------

    def _workload(self, workload: Workload, work: Path, available: dict[str, str | None], aside: Trash) -> None:
        usable = self._usable(workload, work, available, aside)
        try:
            with contextlib.ExitStack() as stack:
                if usable:
                    self._measure(workload, work, usable, stack, aside)
        except FAILURES as error:
            self._note(f"{workload.name} ended early: {error}")
            told = {row.target for row in self._rows.made if row.workload == workload.name}
            for kind in usable:
                if kind.name not in told:
                    self._without(workload, kind.name, str(error))

    def _usable(
        self, workload: Workload, work: Path, available: dict[str, str | None], aside: Trash
    ) -> list[type[TargetBase]]:
        """Targets that are there and that there is room for; the others get rows that say why not."""
        reasons = dict(available)
        there = [TARGETS[name] for name, reason in available.items() if reason is None]
        dataset_bytes = workload.dataset_bytes(self._options.sizes)
        aside.make_room(wanted_bytes(dataset_bytes, there))
        room = fitting(shutil.disk_usage(work.parent).free, dataset_bytes, there)
        cannot = self._meeting.agreed(f"{workload.name}/begin", _cannot_run(workload) or room.reason)
        if cannot:
            self._note(f"{workload.name} is left out: {cannot}")
        for kind in there:
            access = "directory" if kind.kind != "client" else kind.name
            unreadable = "" if access in workload.access else f"{workload.name} has no loader that reads by {access}"
            obstacle = cannot or unreadable or room.dropped.get(kind.name)
            reasons[kind.name] = self._meeting.agreed(f"{workload.name}/room/{kind.name}", obstacle)
        for name, reason in reasons.items():
            if reason:
                if available[name] is None and not cannot:
                    self._note(f"{workload.name}: {name} is left out: {reason}")
                self._without(workload, name, reason)
        return [kind for kind in there if not reasons[kind.name]]

    def _without(self, workload: Workload, target: str, reason: str) -> None:
        """Rows without figures, for each phase that was asked for and that the target would have."""
        phases: list[Phase] = [phase for phase in self._options.phases if phase in TARGETS[target].phases]
        for phase in phases:
            where = Where(
                run_id=self._run_id,
                workload=workload.name,
                target=target,
                phase=phase,
                epoch=1,
                repetition=0,
                rank=self._meeting.rank,
                ranks=self._meeting.ranks,
                readers=0,
                dataset_id="",
                dataset_bytes=0,
                started_at=time.time(),
            )
            self._rows.add(rows.without_figure(where, reason))

    def _measure(
        self,
        workload: Workload,
        work: Path,
        kinds: Sequence[type[TargetBase]],
        stack: contextlib.ExitStack,
        aside: Trash,
    ) -> None:
        stack.callback(aside.put, work)
        work.mkdir()
        files = self._make(workload, work / "plain")
        with self._steps.step(f"{workload.name}: starting the store"), self._stopping.shield():
            server = self._start_store(work / "store", stack)
        self._upload(workload, files, work / "plain", server)
        measuring = Measuring(
            run_id=self._run_id,
            workload=workload,
            sizes=self._options.sizes,
            truth=ExpectedData(work / "plain", files),
            plain=work / "plain",
            server=server,
            crew=ReaderPool(self._stopping),
            prices=self._prices,
            meeting=self._meeting,
        )
        place = Place(work / "plain", work / "t", server, aside)
        course = Schedule(
            options=self._options,
            measuring=measuring,
            preparing=Preparing(measuring, work / "store", self._stopping, self._steps, verify=self._options.verify),
            meeting=self._meeting,
            targets={},
            steps=self._steps,
            tell=self._tell,
            revoke=lambda target, reason: self._rows.revoke(workload.name, target, reason),
            until_s=self._until_s,
        )
        for kind in kinds:
            self._set_up(course, workload, kind, self._placed(place, kind, workload, stack), stack)
        course.run()

    def _start_store(self, directory: Path, stack: contextlib.ExitStack) -> SeaweedFsServer:
        """On loopback, or in a network namespace behind the shaped path."""
        if self._shaped is None:
            return stack.enter_context(SeaweedFsServer(directory))
        with self._shaped.inside():
            return stack.enter_context(SeaweedFsServer(directory, host=self._shaped.address))

    def _make(self, workload: Workload, plain: Path) -> list[DatasetFile]:
        total_bytes = workload.dataset_bytes(self._options.sizes)
        with self._steps.step(f"{workload.name}: making the dataset, about {total_bytes / 1e6:,.0f} MB"):
            return workload.make(plain, self._options.sizes)

    def _upload(self, workload: Workload, files: Sequence[DatasetFile], plain: Path, server: SeaweedFsServer) -> None:
        server.create_bucket("bench")
        total_bytes = sum(file.size_bytes for file in files)
        with self._steps.step(f"{workload.name}: uploading {len(files):,} files", total_bytes) as step:
            upload(
                plain,
                tuple(UploadedFile(file.path, file.size_bytes, "") for file in files),
                endpoint=server.endpoint,
                access_key_id=server.access_key_id,
                secret_access_key=server.secret_access_key,
                bucket="bench",
                prefix="data/",
                advance=step.advance,
            )

    def _set_up(
        self, course: Schedule, workload: Workload, kind: type[TargetBase], place: Place, stack: contextlib.ExitStack
    ) -> None:
        """A target that cannot be set up is out of the course, with its reason."""
        target = kind(place)
        stack.callback(course.preparing.stop, target)
        course.targets[kind.name] = target
        obstacle: str | None = None
        try:
            with self._steps.step(f"{workload.name}: setting up {kind.title}", silent=True):
                target.set_up()
                self._versions[kind.name] = target.version
                self._targets[kind.name] = TargetFacts(kind.title, kind.kind, target.version)
        except FAILURES as error:
            obstacle = str(error)
        obstacle = self._meeting.agreed(f"{workload.name}/set-up/{kind.name}", obstacle)
        if obstacle is not None:
            self._note(f"{workload.name}: {kind.title} is left out: {obstacle}")
            course.lose(target, obstacle)

    def _placed(
        self,
        place: Place,
        kind: type[TargetBase],
        workload: Workload,
        stack: contextlib.ExitStack,
    ) -> Place:
        """For ``path`` with the dataset in it: written there, unless it is there already."""
        if kind.kind != "path" or self._options.path is None:
            return place
        mounted = self._options.path / workload.name
        if not mounted.exists():
            stack.callback(shutil.rmtree, mounted, ignore_errors=True)
            with self._steps.step(f"{workload.name}: writing the dataset to {mounted}"):
                shutil.copytree(place.plain, mounted)
        return replace(place, mounted=mounted)

    def _tell(self, row: Measurement) -> None:
        self._rows.add(row)
        title = TARGETS[row.target].title
        what = f"{row.workload}, {row.phase}, epoch {row.epoch}, repetition {row.repetition + 1}: {title}"
        if row.accelerators is not None:
            self._steps.note(f"{what}: {row.accelerators} × {row.accelerator}, {row.utilisation or 0.0:.1%} busy")
        elif row.samples_per_s is not None:
            speed = f"{row.samples_per_s:,.0f} samples/s, {(row.bytes_per_s or 0.0) / 1e6:,.0f} MB/s"
            self._steps.note(f"{what}: {speed}" + (f"; INVALID: {row.reason}" if row.reason else ""))


def _cannot_run(workload: Workload) -> str:
    missing = [name for name in workload.needs if importlib.util.find_spec(name) is None]
    return f"its loader needs {', '.join(missing)}: pip install 'hayloft[bench]'" if missing else ""


def _workload_facts(workload: Workload) -> WorkloadFacts:
    threshold = workload.accelerator.threshold if workload.accelerator else None
    return WorkloadFacts(workload.title, workload.reads_whole_files, threshold)
