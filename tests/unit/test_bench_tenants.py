"""The figures of the workload ``tenants``: what is compared with what, and when a bound holds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hayloft_bench.report.tenants_table import HEADS, tenant_lines
from hayloft_bench.results.model import Machine, Measurement, Phase, Results, Sizes
from hayloft_bench.results.tenants import ALONE, READ_PARTS, Verdict, tenant_cases
from hayloft_bench.run.row_builder import Where, of_latencies
from hayloft_bench.tenants.programs import lines_within
from hayloft_bench.tenants.victim_process import in_turns

WHERE = Where(
    run_id="run",
    workload="tenants",
    target="hayloft",
    phase="cold",
    epoch=1,
    repetition=0,
    rank=0,
    ranks=1,
    readers=1,
    dataset_id="dataset",
    dataset_bytes=1,
    started_at=0.0,
)
PHASES: tuple[Phase, ...] = ("cold", "hot")


def rows(attack: str, attacked_s: float, control_s: float, repetition: int = 0) -> list[Measurement]:
    """Of one round: all parts and phases took the same."""
    found = []
    for phase in PHASES:
        for part in READ_PARTS:
            for control, seconds in ((False, attacked_s), (True, control_s)):
                row = of_latencies(replace(WHERE, phase=phase, repetition=repetition), [seconds], "")
                found.append(replace(row, attack=attack, part=part, control=control))
    mount = of_latencies(replace(WHERE, repetition=repetition), [], "")
    return [*found, replace(mount, attack=attack, part="mount", mount_s=0.1, unmount_s=0.1, attack_calls_per_s=12.34)]


def results(*measurements: Measurement) -> Results:
    machine = Machine("6.0", 2, 1 << 30, "3.12", {})
    return Results(1, "run", (), Sizes(1.0, 1), machine, {}, measurements)


@pytest.mark.parametrize(
    ("attacked_s", "control_s", "verdict"),
    [(0.2, 0.1, "holds"), (0.5, 0.1, "misses"), (0.5, 0.3, "machine"), (0.19, 0.01, "holds")],
)
def test_a_bound_is_missed_by_the_driver_only_where_it_is_missed_beside_a_daemon_that_is_not_attacked(
    attacked_s: float, control_s: float, verdict: Verdict
) -> None:
    alone, case = tenant_cases(results(*rows(ALONE, 0.1, 0.1), *rows("globs", attacked_s, control_s)))
    assert alone.verdict is None
    assert case.verdict == verdict
    assert set(case.times_alone.values()) == {attacked_s / 0.1}
    assert set(case.times_control.values()) == {attacked_s / control_s}


def test_reads_are_compared_with_the_control_of_their_own_repetition() -> None:
    busy, idle = rows("globs", 10.0, 5.0, repetition=0), rows("globs", 0.3, 0.1, repetition=1)
    (case,) = tenant_cases(results(*busy, *idle))
    assert list(case.times_control.values()) == [pytest.approx(2.5)] * 4


def test_a_line_of_the_table_has_a_cell_for_each_head() -> None:
    lines = tenant_lines(results(*rows(ALONE, 0.1, 0.1), *rows("globs", 0.1, 0.1)))
    assert {len(line) for line in lines} == {len(HEADS)}
    assert [line[0] for line in lines] == ["alone", "", "globs", ""]
    assert lines[2][HEADS.index("calls/s")] == "12.3"
    assert lines[2][-1] == "holds"


def test_the_same_read_begins_with_another_volume_each_time(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("attacked", "control")]
    for path in paths:
        Path(path).write_bytes(b"bytes")
    assert [len(in_turns(paths, 0, 5, number)) for number in (0, 1)] == [2, 2]
    Path(paths[1]).unlink()
    missing = []
    for number in (0, 1):
        with pytest.raises(FileNotFoundError) as raised:
            in_turns(paths, 0, 5, number)
        missing.append(raised.value.filename)
    assert missing == [paths[1], paths[1]]


def test_the_lines_of_a_process_may_be_asked_for_again() -> None:
    program = "import sys\nfor line in sys.stdin: print(line.strip() * 2, flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        for asked in (b"a\n", b"b\n"):
            process.stdin.write(asked)
            process.stdin.flush()
            assert next(lines_within(process, 60.0)) == asked.decode().strip() * 2
        process.kill()
