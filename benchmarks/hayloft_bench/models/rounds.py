"""The rounds of the workload ``model-load``: each loader cold, from the disk and from memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hayloft_bench.errors import ProcessFailed
from hayloft_bench.models.loader_process import missing
from hayloft_bench.models.node import ModelNode
from hayloft_bench.results.model import DatasetFile, Measurement, Phase, TargetFacts
from hayloft_bench.run import cache_states as states
from hayloft_bench.run.page_cache import cached_share, evict, write_out
from hayloft_bench.run.preparation import FAILURES
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.row_builder import Where, of_work, without_figure
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.run.touched_memory import touch_memory
from hayloft_bench.run.trash import Trash
from hayloft_bench.targets.base import REGION, cannot_mount
from hayloft_lab.driver import unmount_below
from hayloft_lab.seaweedfs import SeaweedFsServer

CHECKED = ".00.norm"
"""Ends the names of the tensors that are compared: one in each shard."""
COLD_SHARE, HOT_SHARE = 0.02, 0.98
"""Of the files in the page cache, by mincore(2): at most, before a load that is not hot; at least, before a hot one."""
READ_IN_ATTEMPTS = 3
LIMIT_S = 3600.0


class Subject(NamedTuple):
    """A loader, and where it loads from."""

    facts: TargetFacts
    loader: str
    place: str
    """``plain``: local files. ``hayloft``: a volume with ``profile: inference``. ``s3``: the store itself."""
    phases: tuple[Phase, ...]


SUBJECTS: dict[str, Subject] = {
    "plain-mmap": Subject(TargetFacts("plain local files, safetensors", "limit"), "mmap", "plain", ("warm", "hot")),
    "hayloft-mmap": Subject(TargetFacts("Hayloft, safetensors", "hayloft"), "mmap", "hayloft", ("cold", "warm", "hot")),
    "hayloft-runai": Subject(
        TargetFacts("Hayloft, Run:ai streamer", "path"), "runai", "hayloft", ("cold", "warm", "hot")
    ),
    "hayloft-fastsafetensors": Subject(
        TargetFacts("Hayloft, fastsafetensors", "path"), "fastsafetensors", "hayloft", ("cold", "warm", "hot")
    ),
    "runai-s3": Subject(TargetFacts("Run:ai streamer from the store", "client"), "runai", "s3", ("cold",)),
}
"""By the name of the target in the results."""


class _Load(NamedTuple):
    """What is loaded, from where, and the sums of the tensors that are compared."""

    subject: Subject
    paths: list[str]
    expected: Mapping[str, int]
    node: ModelNode | None = None

    def files(self) -> list[Path]:
        """Whose pages decide about the phase: those of the model, and the object files behind it."""
        return [*map(Path, self.paths), *(self.node.object_files() if self.node else [])]


@dataclass(frozen=True)
class ModelRounds:
    """``where`` is the row of the run; target, phase, repetition and time are filled in."""

    where: Where
    files: Sequence[DatasetFile]
    plain: Path
    server: SeaweedFsServer
    store: Path
    """The directory of the server."""
    directory: Path
    """Its path must be short: it holds the sockets of the driver."""
    steps: Steps
    stopping: Stopping
    trash: Trash
    add_row: Callable[[Measurement], None]
    chosen: Sequence[str] = ()
    """Of ``SUBJECTS``; without any, all."""

    def run(self, repetitions: int, phases: Sequence[Phase]) -> None:
        """Raises Stopped."""
        usable = self._usable(phases)
        expected = self._loaded("mmap", self._paths(self.plain), {})["sums"]
        self.directory.mkdir(exist_ok=True)
        for repetition in range(repetitions):
            shift = repetition % len(usable)
            for name in (*usable[shift:], *usable[:shift]):
                where = replace(self.where, target=name, repetition=repetition)
                wanted = [phase for phase in SUBJECTS[name].phases if phase in phases]
                try:
                    self._subject(SUBJECTS[name], wanted, where, expected)
                except FAILURES as error:
                    self._add(SUBJECTS[name], without_figure(replace(where, phase=wanted[0]), str(error)))

    def _usable(self, phases: Sequence[Phase]) -> list[str]:
        usable = []
        for name in self.chosen or SUBJECTS:
            subject = SUBJECTS[name]
            wanted = [phase for phase in subject.phases if phase in phases]
            more = ("runai_model_streamer_s3",) if subject.place == "s3" else ()
            reason = missing(subject.loader, *more) or (cannot_mount() or "" if subject.place == "hayloft" else "")
            if reason and wanted:
                self.steps.note(f"{subject.facts.title} is left out: {reason}")
                for phase in wanted:
                    self.add_row(without_figure(replace(self.where, target=name, phase=phase), reason))
            elif wanted:
                usable.append(name)
        return usable

    def _subject(self, subject: Subject, phases: Sequence[Phase], where: Where, expected: Mapping[str, int]) -> None:
        states.read_back(self.store)
        if subject.place == "s3":
            self._measure(_Load(subject, self._s3_paths(), expected), replace(where, phase="cold"))
            return
        if subject.place == "plain":
            self._on_files(_Load(subject, self._paths(self.plain), expected), phases, where)
            return
        directory = self.directory / f"{where.target.removeprefix('hayloft-')[0]}{where.repetition}"
        try:
            with ModelNode(directory, self.server, self.stopping) as node:
                load = _Load(subject, self._paths(node.publish()), expected, node)
                if "cold" in phases:
                    self._measure(load, replace(where, phase="cold"))
                else:
                    self._loaded("mmap", load.paths, {})
                node.wait_until_cached(self.where.dataset_bytes)
                later = [phase for phase in phases if phase != "cold"]
                if later:  # by the second pod
                    paths = self._paths(node.publish_again())
                    self._on_files(load._replace(paths=paths), later, where)
        finally:
            unmount_below(directory)
            self.trash.put(directory)

    def _on_files(self, load: _Load, phases: Sequence[Phase], where: Where) -> None:
        for phase in phases:
            if phase == "warm":
                write_out(self.directory)
                evict(load.files())
            else:
                self._read_in(load)
            self._measure(load, replace(where, phase=phase))

    def _read_in(self, load: _Load) -> None:
        """Again if the kernel has dropped pages meanwhile: those of a loader that has ended are free only then."""
        for _ in range(READ_IN_ATTEMPTS):
            self._loaded("mmap", load.paths, {})
            if not page_objection("hot", load.files()):
                return

    def _measure(self, load: _Load, where: Where) -> None:
        subject, node = load.subject, load.node
        # As much as the tensors take. Not more: it must not drop pages of files that have to be in memory.
        touch_memory(self.where.dataset_bytes)
        # A cold load from the store has no files whose pages could be in memory.
        reason = "" if where.phase == "cold" else page_objection(where.phase, load.files())
        sent_before, driver_before_s = self.server.bytes_sent(), node.cpu_s() if node else 0.0
        where = replace(where, started_at=time.time())
        with self.steps.step(f"model-load: {subject.facts.title}, {where.phase}", silent=True):
            found = self._loaded(subject.loader, load.paths, self._s3_variables() if subject.place == "s3" else {})
        driver_cpu_s = node.cpu_s() - driver_before_s if node else 0.0
        sent_bytes = self.server.bytes_sent() - sent_before
        if found["sums"] != dict(load.expected):
            reason = "tensors differ from those of the plain files"
        elif where.phase == "cold" and sent_bytes < states.COLD_SHARE * where.dataset_bytes:
            reason = f"not cold: the store sent {sent_bytes / 1e6:,.1f} MB"
        elif where.phase != "cold" and sent_bytes > states.CACHED_SHARE * where.dataset_bytes:
            reason = reason or f"not {where.phase}: the store sent {sent_bytes / 1e6:,.1f} MB"
        row = of_work(
            where,
            seconds=found["seconds"],
            count_bytes=found["bytes"],
            samples=len(self.files),
            cpu_s=found["cpu_s"] + driver_cpu_s,
            origin_bytes=sent_bytes,
            reason=reason,
        )
        self._add(subject, row)

    def _add(self, subject: Subject, row: Measurement) -> None:
        self.add_row(row)
        what = f"repetition {row.repetition + 1}: {subject.facts.title}, {row.phase}"
        if row.seconds is not None:
            invalid = f"; INVALID: {row.reason}" if row.reason else ""
            self.steps.note(f"{what}: {row.seconds:.2f} s, {(row.bytes_per_s or 0) / 1e6:,.0f} MB/s{invalid}")
        else:
            self.steps.note(f"{what}: {row.reason}")

    def _loaded(self, loader: str, paths: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        """Raises ProcessFailed."""
        command = [sys.executable, "-m", "hayloft_bench.models.loader_process"]
        with self.stopping.shield():
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            wanted = json.dumps({"loader": loader, "paths": paths, "checked": CHECKED}) + "\n"
            said, complaints = process.communicate(wanted, timeout=LIMIT_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            raise ProcessFailed(f"the loader {loader} failed: {' '.join(complaints.splitlines()[-2:])}")
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    # -- places ----------------------------------------------------------------------------------------------------

    def _paths(self, root: Path) -> list[str]:
        return [str(root / file.path) for file in self.files]

    def _s3_paths(self) -> list[str]:
        return [f"s3://bench/data/{file.path}" for file in self.files]

    def _s3_variables(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_access_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def page_objection(phase: Phase, files: Sequence[Path]) -> str:
    """Why the page cache is not what the phase says; empty if it is."""
    share = cached_share(files)
    if phase == "hot" and share < HOT_SHARE:
        return f"not hot: {share:.0%} of the files were in the page cache"
    if phase != "hot" and share > COLD_SHARE:
        return f"not {phase}: {share:.0%} of the files were in the page cache"
    return ""
