"""``hayloft demo`` from the outside: a small run to its end, and runs that are stopped in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.demo.preset import EPOCHS, TARGETS, WORKLOADS
from hayloft_bench.targets import TARGETS as ALL_TARGETS
from hayloft_bench.workloads import WORKLOADS as ALL_WORKLOADS

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.timeout(300)]

SCALE = "0.02"


class DemoRun:
    """A demonstration as a process, and what can be seen of it from the outside."""

    def __init__(self, directory: Path) -> None:
        # Not below pytest's directory: the path of a socket may have 107 characters.
        self.work = Path(tempfile.mkdtemp(prefix="hd-"))
        self._mark = f"HAYLOFT_TEST_RUN={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        command = [sys.executable, "-m", "csi_driver.cli", "demo", "--scale", SCALE, "--directory", str(self.work)]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, name: value, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, words: str) -> None:
        """Blocks until a line of its output has the words."""
        seen = []
        for line in self.process.stdout or ():
            seen.append(line)
            if words in line:
                return
        pytest.fail(f"the demonstration ended before the words {words!r}:\n{''.join(seen)}")

    def processes(self) -> list[str]:
        """Command lines of its processes: found by their environment, which children inherit, or its directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if self._mark in environment or str(self.work) in command:
                found.append(command)
        return found

    def mounts(self) -> list[str]:
        return [entry.mount_point for entry in MountTable.read().below(self.work)]

    def left(self) -> tuple[list[str], list[str], list[str]]:
        """Processes, mounts, files that remain."""
        return self.processes(), self.mounts(), [path.name for path in self.work.iterdir()]


@contextmanager
def _demo(directory: Path) -> Iterator[DemoRun]:
    run = DemoRun(directory)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
        run.process.communicate(timeout=60)
        shutil.rmtree(run.work, ignore_errors=True)


def test_the_demonstration_measures_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with _demo(tmp_path) as run:
        output, _ = run.process.communicate(timeout=270)
        assert run.process.returncode == 0, output
        assert run.left() == ([], [], []), output
    document = json.loads((tmp_path / "demo-results.json").read_text())
    assert document["machine"]["versions"]["hayloft"]
    figures = {
        (row["workload"], row["target"], row["phase"], row["epoch"]): row
        for row in document["measurements"]
        if row["valid"]
    }
    epochs = [("cold", 1), *(("warm", number) for number in range(1, EPOCHS + 1))]
    assert set(figures) == {
        (workload, target, phase, epoch)
        for workload in WORKLOADS
        for target in TARGETS
        for phase, epoch in epochs
        if phase in ALL_TARGETS[target].phases
        if ALL_TARGETS[target].kind != "client" or target in ALL_WORKLOADS[workload].access
    }
    assert (tmp_path / "demo-results.png").read_bytes().startswith(b"\x89PNG")
    assert "How fast the dataset is read" in output
    assert "Every byte was compared through the mount" in output

    for (workload, target, phase, _), row in figures.items():
        if target == "hayloft" and phase == "warm":
            assert row["origin_bytes"] == 0
        if target == "hayloft" and phase == "cold" and workload != "parquet":
            assert row["bytes"] <= row["origin_bytes"] <= 1.02 * row["bytes"]
        if target in ("boto3", "s3fs"):
            assert row["origin_bytes"] >= row["bytes"] > 0


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("making the dataset", signal.SIGINT),
        ("uploading", signal.SIGINT),
        ("cold, epoch 1, repetition 1: Hayloft", signal.SIGTERM),
    ],
)
def test_a_signal_during_the_run_leaves_no_mount_no_process_and_no_file(
    tmp_path: Path, words: str, number: signal.Signals
) -> None:
    with _demo(tmp_path) as run:
        run.wait_for(words)
        run.process.send_signal(number)
        output, _ = run.process.communicate(timeout=60)
        assert run.process.returncode == 128 + number, output
        assert run.left() == ([], [], [])
    assert not (tmp_path / "demo-results.json").exists()
