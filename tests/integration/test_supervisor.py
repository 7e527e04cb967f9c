"""The supervisor of the cache daemon, as a process, with a program in the daemon's place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.wiring.supervisor import cause_of, earlier_ends, restart_delay_s
from tests.support.daemons import wait_until

PROGRAM = """
import json, logging, os, signal, sys
from csi_driver import telemetry
from csi_driver.wiring.shutdown import watching
from csi_driver.wiring.supervisor import earlier_ends, report_serving, supervise

directory, behaviour = sys.argv[1:]

def note_start():
    with open(os.path.join(directory, "starts"), "a") as file:
        print(json.dumps([os.getpid(), earlier_ends(os.environ)]), file=file)

def run():
    if behaviour == "stops in order":
        with watching(signal.SIGTERM) as signals:
            note_start()
            signals.wait()
        return 5
    note_start()
    if behaviour == "serves":
        report_serving(os.environ)
        signal.pause()
    elif behaviour == "fails":
        print("why it fails", file=sys.stderr)
        return 3
    os.kill(os.getpid(), signal.SIGSEGV)

telemetry.set_up_logging("supervisor")
sys.exit(supervise(run, prepare=lambda: None))
"""


class Supervised:
    """A supervisor; its children write a line each to ``starts``."""

    def __init__(self, directory: Path, behaviour: str) -> None:
        self._starts = directory / "starts"
        self.process = subprocess.Popen(
            (sys.executable, "-c", PROGRAM, os.fspath(directory), behaviour), stderr=subprocess.PIPE, text=True
        )

    def starts(self) -> list[tuple[int, dict[str, int]]]:
        lines = self._starts.read_text().splitlines() if self._starts.exists() else []
        return [(pid, ends) for pid, ends in map(json.loads, lines)]

    def child(self, number: int) -> int:
        """The process id of the child that was started as the ``number``th."""
        wait_until(lambda: len(self.starts()) >= number)
        return self.starts()[number - 1][0]

    def close(self) -> str:
        """Returns the log."""
        self.process.terminate()
        with self.process:
            return self.process.communicate(timeout=60)[1]


Start = Callable[[str], Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Supervised] = []

    def make(behaviour: str) -> Supervised:
        started.append(Supervised(tmp_path, behaviour))
        return started[-1]

    yield make
    for each in started:
        if each.process.stderr is not None and not each.process.stderr.closed:
            each.close()


def runs(process_id: int) -> bool:
    """Whether the process exists, and has not ended."""
    with suppress(OSError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


@pytest.mark.promise("S380")
def test_a_child_that_serves_is_started_again_after_every_kill(start: Start) -> None:
    supervised = start("serves")
    for number in range(1, 6):
        os.kill(supervised.child(number), signal.SIGKILL)
    supervised.child(6)
    assert [ends for _, ends in supervised.starts()] == [{"SIGKILL": count} if count else {} for count in range(6)]
    log = supervised.close()
    assert log.count("the cache daemon ended unexpectedly and is started again") == 5
    assert "cause=SIGKILL" in log


@pytest.mark.promise("S381")
def test_a_child_that_cannot_start_ends_the_supervisor_with_its_code_and_its_message_alone(start: Start) -> None:
    supervised = start("fails")
    assert supervised.process.wait(60) == 3
    assert len(supervised.starts()) == 1
    assert supervised.close() == "why it fails\n"


@pytest.mark.promise("S381")
def test_a_child_that_a_signal_ends_before_it_serves_is_started_a_few_times_only() -> None:
    delays = [restart_delay_s(-signal.SIGSEGV, served=False, failures=failures) for failures in range(1, 12)]
    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays[8:] == [None, None, None]
    assert max(delay for delay in delays if delay is not None) == 5.0
    assert restart_delay_s(-signal.SIGKILL, served=True, failures=0) == 0.0
    assert restart_delay_s(1, served=True, failures=0) == 0.0


def test_a_child_that_crashes_at_its_start_is_tried_again(start: Start) -> None:
    supervised = start("crashes")
    supervised.child(3)
    assert supervised.starts()[2][1] == {"SIGSEGV": 2}


@pytest.mark.promise("S382")
def test_a_child_ends_with_its_supervisor(start: Start) -> None:
    supervised = start("serves")
    child = supervised.child(1)
    supervised.process.kill()
    wait_until(lambda: not runs(child))
    assert len(supervised.starts()) == 1


def test_a_stop_signal_is_passed_on_and_the_exit_code_is_the_childs(start: Start) -> None:
    supervised = start("stops in order")
    child = supervised.child(1)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(60) == 5
    assert not runs(child)
    assert len(supervised.starts()) == 1


def test_a_stop_signal_ends_a_supervisor_whose_child_does_not_handle_it(start: Start) -> None:
    supervised = start("serves")
    supervised.child(1)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(60) == 128 + signal.SIGTERM


def test_the_cause_of_an_end_is_named() -> None:
    assert [cause_of(-9), cause_of(-200), cause_of(1)] == ["SIGKILL", "signal 200", "exit code 1"]


@pytest.mark.parametrize("text", ["", "1", "[]", '{"a": []}'])
def test_an_unusable_count_of_ends_counts_as_none(text: str) -> None:
    assert earlier_ends({"HAYLOFT_EARLIER_ENDS": text}) == {}
