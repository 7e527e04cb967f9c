"""``hayloft demo`` from the outside: a small run to its end, and runs that are stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.demo.table import TARGETS
from hayloft_bench.demo.workloads import WORKLOADS

pytestmark = [pytest.mark.fuse, pytest.mark.server, pytest.mark.timeout(180)]

SCALE = "0.02"


class DemoRun:
    """A demonstration as a process, and what can be found of it from the outside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.work = directory / "work"
        self.work.mkdir()
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
        """Until a line of its output has the words."""
        seen = []
        for line in self.process.stdout or ():
            seen.append(line)
            if words in line:
                return
        pytest.fail(f"the demonstration ended without saying {words!r}:\n{''.join(seen)}")

    def processes(self) -> list[str]:
        """Command lines of all that live of it: by its environment, which children inherit, or its directory."""
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
        """Mount points below its directory."""
        return [entry.mount_point for entry in MountTable.read().below(self.work)]

    def left(self) -> tuple[list[str], list[str], list[str]]:
        """Processes, mounts, files."""
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


def test_the_demonstration_measures_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with _demo(tmp_path) as run:
        output, _ = run.process.communicate(timeout=150)
    assert run.process.returncode == 0, output
    assert run.left() == ([], [], []), output
    rows = json.loads((tmp_path / "demo-results.json").read_text())
    expected = {
        (workload, target, epoch, "cold" if epoch == 1 else "warm")
        for workload in WORKLOADS
        for target in TARGETS
        for epoch in (1, 2, 3)
    }
    assert {(row["workload"], row["target"], row["epoch"], row["phase"]) for row in rows} == expected
    assert (tmp_path / "demo-results.png").read_bytes().startswith(b"\x89PNG")
    assert "One dataset, read epoch by epoch" in output
    assert "Every byte was checked (SHA-256), cold and warm" in output

    through_the_mount = [row for row in rows if row["target"] == "hayloft"]
    assert all(row["origin_bytes"] == 0 for row in through_the_mount if row["phase"] == "warm")
    for row in through_the_mount:
        if row["phase"] == "cold" and row["workload"] != "parquet":
            assert row["bytes"] <= row["origin_bytes"] <= 1.02 * row["bytes"]
    assert all(row["origin_bytes"] >= row["bytes"] > 0 for row in rows if row["target"] in ("boto3", "s3fs"))


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("making the dataset", signal.SIGINT),
        ("starting the driver", signal.SIGINT),
        ("mounted as fuse", signal.SIGTERM),
    ],
)
def test_a_signal_in_the_middle_leaves_no_mount_no_process_and_no_file(
    tmp_path: Path, words: str, number: signal.Signals
) -> None:
    with _demo(tmp_path) as run:
        run.wait_for(words)
        run.process.send_signal(number)
        output, _ = run.process.communicate(timeout=60)
    assert run.process.returncode == 128 + number, output
    assert run.left() == ([], [], [])
    assert not (tmp_path / "demo-results.json").exists()
