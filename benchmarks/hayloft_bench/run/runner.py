"""``hayloft bench run``: one workload after the other, each with a store, a dataset and targets of its own.

However the run ends, its processes are ended, its mounts unmounted and its files removed; the rows measured so far are
kept.
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
from csi_driver.wiring.version import hayloft_version
from hayloft_bench.distributed.barrier import Barrier
from hayloft_bench.models.rounds import SUBJECTS, ModelRounds
from hayloft_bench.network import shaped_path as network
from hayloft_bench.node_copies.copiers import COPIERS
from hayloft_bench.node_copies.rounds import WarmRounds
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
from hayloft_bench.run.options import OWN_TARGETS, WITH_ROUNDS, Options
from hayloft_bench.run.preparation import FAILURES, Preparing
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.reader_pool import ReaderPool
from hayloft_bench.run.row_builder import Where
from hayloft_bench.run.schedule import Schedule
from hayloft_bench.run.servers import start_store, start_web_server
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.run.trash import Trash
from hayloft_bench.run.upload import upload
from hayloft_bench.targets import TARGETS
from hayloft_bench.targets.base import Place, TargetBase
from hayloft_bench.targets.hayloft import Hayloft
from hayloft_bench.tenants.rounds import Rounds
from hayloft_bench.workloads import WORKLOADS
from hayloft_bench.workloads.on_a_node import Warm
from hayloft_bench.workloads.tenants import Tenants
from hayloft_lab.driver import unmount_below
from hayloft_lab.nginx_files import NginxFiles
from hayloft_lab.seaweedfs import SeaweedFsServer


@dataclass
class Rows:
    """The rows measured so far."""

    made: list[Measurement] = field(default_factory=list)

    def add(self, row: Measurement) -> None:
        self.made.append(row)

    def revoke(self, workload: str, target: str, reason: str) -> None:
        """Marks all figures of the target invalid."""
        for number, row in enumerate(self.made):
            if (row.workload, row.target) == (workload, target) and row.valid:
                self.made[number] = replace(row, valid=False, reason=reason)


class Runner:
    """One run. ``results`` may be called at any time, also after a stop."""

    def __init__(
        self,
        options: Options,
        console: Console,
        stopping: Stopping,
        stack: contextlib.ExitStack,
        *,
        command: Sequence[str],
        barrier: Barrier,
    ) -> None:
        """``stack`` ends everything that the run starts."""
        self._options, self._console, self._stopping, self._stack = options, console, stopping, stack
        self._command, self._barrier = tuple(command), barrier
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
        trash = Trash(work / "trash")
        available = self._available()
        if self._options.network is not None:
            with self._stopping.shield():
                self._shaped = self._stack.enter_context(network.shaped(self._options.network))
            self._note(f"the path to the store: {self._shaped.wording()}")
        with self._steps.shown():
            for number, name in enumerate(self._options.workloads, 1):
                if self._options.budget_s is not None and self._barrier.ranks == 1:
                    self._until_s = begun_s + self._options.budget_s * number / len(self._options.workloads)
                workload = WORKLOADS[name]
                # The rounds of the others say themselves what cannot be used.
                reason = None if name in OWN_TARGETS else Hayloft.unavailable()
                usable = {"hayloft": reason} if name in WITH_ROUNDS else available
                self._workload(workload, work / name, usable, trash)
        return self.results()

    def results(self) -> Results:
        """With the rows measured so far."""
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
            targets={name: self._facts(name) for name in options.targets} | self._targets,
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
        if not self._options.evict_own_files and not states.may_drop_page_cache():
            self._note("without root the page cache of the machine cannot be dropped: only plain files are evicted")
        return work

    def _remove(self, work: Path) -> None:
        left = unmount_below(work)
        if left:
            # Deleting below a mount could delete the files that it shows.
            self._console.print(f"[bold red]still mounted, so {work} stays:[/] {', '.join(left)}", highlight=False)
        elif self._options.keep:
            self._console.print(f"the files stay in {work}", highlight=False)
        else:
            shutil.rmtree(work, ignore_errors=True)

    def _available(self) -> dict[str, str | None]:
        """By name of the target: why it cannot be used here, or None."""
        found: dict[str, str | None] = {}
        for name in self._options.targets:
            found[name] = reason = self._barrier.agreed(f"available/{name}", TARGETS[name].unavailable())
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

    def _workload(self, workload: Workload, work: Path, available: dict[str, str | None], trash: Trash) -> None:
        usable = self._usable(workload, work, available, trash)
        try:
            with contextlib.ExitStack() as stack:
                if usable:
                    self._measure(workload, work, usable, stack, trash)
        except FAILURES as error:
            self._note(f"{workload.name} ended early: {error}")
            measured = {row.target for row in self._rows.made if row.workload == workload.name}
            for kind in usable:
                if kind.name not in measured:
                    self._without(workload, kind.name, str(error))

    def _usable(
        self, workload: Workload, work: Path, available: dict[str, str | None], trash: Trash
    ) -> list[type[TargetBase]]:
        """Targets that are installed and that the disk has space for; the others get rows with the reason."""
        reasons = dict(available)
        installed = [TARGETS[name] for name, reason in available.items() if reason is None]
        dataset_bytes = workload.dataset_bytes(self._options.sizes)
        trash.free(wanted_bytes(dataset_bytes, installed))
        space = fitting(shutil.disk_usage(work.parent).free, dataset_bytes, installed)
        cannot = self._barrier.agreed(
            f"{workload.name}/begin", _cannot_run(workload, self._barrier.ranks) or space.reason
        )
        if cannot:
            self._note(f"{workload.name} is left out: {cannot}")
        for kind in installed:
            access = "directory" if kind.kind != "client" else kind.name
            unreadable = "" if access in workload.access else f"{workload.name} has no loader that reads by {access}"
            obstacle = cannot or unreadable or space.dropped.get(kind.name)
            reasons[kind.name] = self._barrier.agreed(f"{workload.name}/space/{kind.name}", obstacle)
        for name, reason in reasons.items():
            if reason:
                if available[name] is None and not cannot:
                    self._note(f"{workload.name}: {name} is left out: {reason}")
                self._without(workload, name, reason)
        return [kind for kind in installed if not reasons[kind.name]]

    def _without(self, workload: Workload, target: str, reason: str) -> None:
        """Rows without figures, one for each requested phase that the target has."""
        phases: list[Phase] = [phase for phase in self._options.phases if phase in TARGETS[target].phases]
        for phase in phases:
            self._rows.add(rows.without_figure(self._where(workload, target, phase), reason))

    def _where(self, workload: Workload, target: str, phase: Phase) -> Where:
        return Where(
            run_id=self._run_id,
            workload=workload.name,
            target=target,
            phase=phase,
            epoch=1,
            repetition=0,
            rank=self._barrier.rank,
            ranks=self._barrier.ranks,
            readers=0,
            dataset_id="",
            dataset_bytes=0,
            started_at=time.time(),
        )

    def _measure(
        self,
        workload: Workload,
        work: Path,
        kinds: Sequence[type[TargetBase]],
        stack: contextlib.ExitStack,
        trash: Trash,
    ) -> None:
        if not self._options.keep:
            stack.callback(trash.put, work)
        work.mkdir()
        files = self._make(workload, work / "plain")
        if isinstance(workload, Warm) and workload.from_web_server:
            with self._steps.step(f"{workload.name}: starting nginx"), self._stopping.shield():
                web_server = start_web_server(work, self._shaped, stack)
            self._on_a_node(workload, files, web_server, work, trash)
            return
        with self._steps.step(f"{workload.name}: starting the store"), self._stopping.shield():
            server = start_store(work / "store", self._shaped, stack)
        self._upload(workload, files, work / "plain", server)
        if isinstance(workload, Tenants):
            self._tenants(workload, files, server, work)
            return
        if workload.name in WITH_ROUNDS:
            self._on_a_node(workload, files, server, work, trash)
            return
        measuring = Measuring(
            run_id=self._run_id,
            workload=workload,
            sizes=self._options.sizes,
            expected=ExpectedData(work / "plain", files),
            plain=work / "plain",
            server=server,
            pool=ReaderPool(self._stopping),
            prices=self._prices,
            barrier=self._barrier,
        )
        place = Place(work / "plain", work / "t", server, trash)
        schedule = Schedule(
            options=self._options,
            measuring=measuring,
            preparing=Preparing(
                measuring,
                work / "store",
                self._stopping,
                self._steps,
                verify=self._options.verify,
                evict_own_files=self._options.evict_own_files,
            ),
            barrier=self._barrier,
            targets={},
            steps=self._steps,
            add_row=self._add_row,
            revoke=lambda target, reason: self._rows.revoke(workload.name, target, reason),
            until_s=self._until_s,
        )
        for kind in kinds:
            self._set_up(schedule, workload, kind, self._placed(place, kind, workload, stack), stack)
        schedule.run()

    def _tenants(self, workload: Workload, files: Sequence[DatasetFile], server: SeaweedFsServer, work: Path) -> None:
        """Rounds of their own, not the phases of the other workloads."""
        self._versions["hayloft"] = hayloft_version()
        where = replace(
            self._where(workload, "hayloft", "cold"),
            readers=1,
            dataset_id=ExpectedData(work / "plain", files).dataset_id(),
            dataset_bytes=sum(file.size_bytes for file in files),
        )
        Rounds(
            where=where,
            files=files,
            server=server,
            directory=work / "n",
            scale=self._options.sizes.scale,
            seed=self._options.sizes.seed,
            steps=self._steps,
            stopping=self._stopping,
            add_row=self._rows.add,
            attacks=self._options.attacks,
        ).run(self._options.repetitions)

    def _on_a_node(
        self,
        workload: Workload,
        files: Sequence[DatasetFile],
        server: SeaweedFsServer | NginxFiles,
        work: Path,
        trash: Trash,
    ) -> None:
        """The rounds of ``warm``, its variants, and ``model-load``."""
        self._versions["hayloft"] = hayloft_version()
        dataset_bytes = sum(file.size_bytes for file in files)
        self._note(f"{workload.name}: before each figure as much of the machine's memory is touched as it may need")
        where = replace(
            self._where(workload, "hayloft", "cold"),
            readers=1,
            dataset_id=ExpectedData(work / "plain", files).dataset_id(),
            dataset_bytes=dataset_bytes,
        )
        parts = (self._steps, self._stopping, trash, self._rows.add)
        own = OWN_TARGETS[workload.name]
        chosen = [name for name in own if name in self._options.own_targets] or own
        if isinstance(workload, Warm):
            self._targets |= {name: copier.facts for name, copier in COPIERS.items()}
            read = work / ("plain" if isinstance(server, NginxFiles) else "store")
            WarmRounds(where, files, server, read, work / "n", *parts, chosen).run(self._options.repetitions)
        elif isinstance(server, SeaweedFsServer):
            self._targets |= {name: subject.facts for name, subject in SUBJECTS.items()}
            model_rounds = ModelRounds(where, files, work / "plain", server, work / "store", work / "n", *parts, chosen)
            model_rounds.run(self._options.repetitions, self._options.phases)

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
                files,
                endpoint=server.endpoint,
                access_key_id=server.access_key_id,
                secret_access_key=server.secret_access_key,
                bucket="bench",
                prefix="data/",
                advance=step.advance,
            )

    def _set_up(
        self, schedule: Schedule, workload: Workload, kind: type[TargetBase], place: Place, stack: contextlib.ExitStack
    ) -> None:
        """A target that cannot be set up is taken out of the schedule, with its reason."""
        target = kind(place)
        stack.callback(schedule.preparing.stop, target)
        schedule.targets[kind.name] = target
        obstacle: str | None = None
        try:
            with self._steps.step(f"{workload.name}: setting up {kind.title}", silent=True):
                target.set_up()
                self._versions[kind.name] = target.version
                self._targets[kind.name] = TargetFacts(kind.title, kind.kind, target.version)
        except FAILURES as error:
            obstacle = str(error)
        obstacle = self._barrier.agreed(f"{workload.name}/set-up/{kind.name}", obstacle)
        if obstacle is not None:
            self._note(f"{workload.name}: {kind.title} is left out: {obstacle}")
            schedule.lose(target, obstacle)

    def _placed(
        self,
        place: Place,
        kind: type[TargetBase],
        workload: Workload,
        stack: contextlib.ExitStack,
    ) -> Place:
        """For ``path``: with the dataset in it, copied unless it exists."""
        if kind.kind != "path" or self._options.path is None:
            return place
        mounted = self._options.path / workload.name
        if not mounted.exists():
            stack.callback(shutil.rmtree, mounted, ignore_errors=True)
            with self._steps.step(f"{workload.name}: writing the dataset to {mounted}"):
                shutil.copytree(place.plain, mounted)
        return replace(place, mounted=mounted)

    def _add_row(self, row: Measurement) -> None:
        self._rows.add(row)
        title = TARGETS[row.target].title
        what = f"{row.workload}, {row.phase}, epoch {row.epoch}, repetition {row.repetition + 1}: {title}"
        if row.accelerators is not None:
            self._steps.note(f"{what}: {row.accelerators} × {row.accelerator}, {row.utilisation or 0.0:.1%} busy")
        elif row.samples_per_s is not None:
            speed = f"{row.samples_per_s:,.0f} samples/s, {(row.bytes_per_s or 0.0) / 1e6:,.0f} MB/s"
            self._steps.note(f"{what}: {speed}" + (f"; INVALID: {row.reason}" if row.reason else ""))


def _cannot_run(workload: Workload, ranks: int) -> str:
    missing = [name for name in workload.needs if importlib.util.find_spec(name) is None]
    if workload.name in WITH_ROUNDS and ranks > 1:
        return "it is for one rank"
    return f"its loader needs {', '.join(missing)}: pip install 'hayloft[bench]'" if missing else ""


def _workload_facts(workload: Workload) -> WorkloadFacts:
    threshold = workload.accelerator.threshold if workload.accelerator else None
    return WorkloadFacts(workload.title, workload.reads_whole_files, threshold)
