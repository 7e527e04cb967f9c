"""``hayloft bench`` from the outside: a small run to its end, runs that are stopped, and what it refuses."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from csi_driver.cli.application import run_command
from csi_driver.mounts.mount_table import MountTable
from hayloft_bench.results import files as results
from hayloft_bench.results.tenants import ALONE
from hayloft_bench.targets import TARGETS

REPOSITORY = Path(__file__).parents[2]


def _bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "csi_driver.cli", "bench", *arguments]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(_bench(*arguments), env=environment, capture_output=True, text=True, check=False)


def _run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same without a process, which imports for a second: for what starts none itself."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        code = run_command(["bench", *arguments])
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


@pytest.fixture
def work() -> Iterator[Path]:
    """With a short path, as sockets need."""
    path = Path(tempfile.mkdtemp(prefix="hb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        _bench(*arguments),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _left(directory: Path) -> list[str]:
    """Files, mounts and processes of a run below the directory."""
    found = [str(path) for path in directory.iterdir()]
    found += [entry.mount_point for entry in MountTable.read().below(directory)]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory) in words and int(entry.name) != os.getpid():
            found.append(words)
    return found


@pytest.mark.fuse
@pytest.mark.server
@pytest.mark.timeout(300)
def test_a_small_run_measures_cold_and_hot_and_leaves_nothing_behind(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ["plain", "hayloft", *(name for name in ("rclone",) if TARGETS[name].unavailable() is None), "boto3"]
    done = _run(
        *("run", "--workloads", "imagenet", "--targets", *names, "--phases", "cold", "hot"),
        *("--scale", "0.005", "--epochs", "1", "--repetitions", "1"),
        *("--directory", str(work), "--out", str(out), "--report"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _left(work) == []
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.parquet"]
    assert (out / "report.html").stat().st_size > 10_000
    rows = {(row.target, row.phase): row for row in results.read(out).measurements}
    expected = {(name, phase) for name in names for phase in ("cold", "hot") if phase in TARGETS[name].phases}
    assert set(rows) >= expected
    for key in (("hayloft", "cold"), ("hayloft", "hot"), ("boto3", "cold"), ("plain", "hot")):
        assert rows[key].reason == ""
        assert rows[key].samples == 100
    assert 1.0 <= (rows["hayloft", "cold"].read_amplification or 0) <= 1.02
    assert rows["hayloft", "hot"].origin_bytes == 0
    assert rows["hayloft", "cold"].cpu_target_s
    assert "origin ÷ need" in done.stdout


@pytest.mark.fuse
@pytest.mark.server
@pytest.mark.timeout(900)
def test_an_attack_of_another_tenant_has_its_rows_and_a_line_of_the_table(work: Path, tmp_path: Path) -> None:
    """``all`` is each of them."""
    out = tmp_path / "out"
    done = _run(
        *("run", "--workload", "tenants", "--attacks", "all", "--scale", "0.01", "--repetitions", "1"),
        *("--directory", str(work), "--out", str(out), "--report"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert _left(work) == []
    rows = results.read(out).measurements
    attacks = (ALONE, "all")
    assert [row.attack for row in rows] == [attack for attack in attacks for _ in range(9)]
    for attack in attacks:
        mine = [row for row in rows if row.attack == attack]
        parts = [("small", "cold"), ("large", "cold"), ("small", "hot"), ("large", "hot")]
        expected = [(*part, control) for part in parts for control in (False, True)] + [("mount", "cold", False)]
        assert [(row.part, row.phase, row.control) for row in mine] == expected
        assert all(row.sample_p99_s is not None and row.samples for row in mine[:8])
        assert mine[8].mount_s is not None
        assert (mine[8].attack_calls_per_s is None) == (mine[8].attack_requests_per_s is None) == (attack == ALONE)
    alone = [row for row in rows if row.attack == ALONE]
    assert all(row.valid for row in alone), alone
    assert [row.samples for row in alone[:8:2]] == [20, 16, 5 * 20, 5 * 16]
    for text in (done.stdout, (out / "report.html").read_text()):
        assert "× alone" in text
        assert "× control" in text
        assert all(attack in text for attack in attacks)


@pytest.mark.fuse
@pytest.mark.server
@pytest.mark.timeout(300)
def test_a_run_that_is_stopped_cleans_up(work: Path) -> None:
    arguments = ["run", "--workloads=imagenet", "--targets=hayloft,plain", "--phases=cold,hot", "--scale=0.005"]
    with _running(*arguments, f"--directory={work}") as process:
        for line in process.stdout or ():
            if "cold, epoch 1" in line:
                break
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: everything is unmounted and ended" in output
    assert _left(work) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--workloads=imagnet"), "did you mean imagenet?"),
        (("run", "--targets=juicesf"), "did you mean juicefs?"),
        (("run", "--phases=lukewarm"), "There are: cold, warm, hot, small-cache, restart"),
        (("run", "--scale=0"), "--scale 0 is out of range"),
        (("run", "--accelerators=lots"), "a number from 1, or search"),
        (("run", "--no-such-flag"), "--no-such-flag"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = _run_here(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_the_list_run_nothing() -> None:
    assert "--repetitions" in _run_here("run", "--help").stdout
    listed = _run_here("run", "--list").stdout
    for name in ("imagenet", "juicefs", "small-cache"):
        assert name in listed


def test_a_kept_run_makes_a_report_a_picture_a_table_and_plots(tmp_path: Path) -> None:
    run = str(REPOSITORY / "benchmarks" / "results" / "network")
    assert _run_here("report", run, "--out", str(tmp_path)).stdout == f"{tmp_path}/report.html\n"
    assert "How fast training reads" in (tmp_path / "report.html").read_text()
    assert _run_here("report", run, "--picture", str(tmp_path / "run.png")).returncode == 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert _run_here("report", run, "--table", "MB/s").stdout.startswith("| workload | phase | Hayloft |")
    assert _run_here("plot", run, "--out", str(tmp_path / "plots")).returncode == 0
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}
    assert "0 of " in _run_here("compare", run, run).stdout
