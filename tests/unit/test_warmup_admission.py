"""Admission: warmups leave the fetch threads to readers."""

from __future__ import annotations

import threading

from csi_driver.reading.warmup_admission import AdmissionGate, Foreground, may_begin


def test_no_fetch_begins_while_a_reader_waits_and_one_while_readers_fetch() -> None:
    assert not may_begin(Foreground(queued=True, busy=0), running=0, limit=8)
    assert may_begin(Foreground(queued=False, busy=3), running=0, limit=8)
    assert not may_begin(Foreground(queued=False, busy=3), running=1, limit=8)
    assert may_begin(Foreground(queued=False, busy=0), running=7, limit=8)
    assert not may_begin(Foreground(queued=False, busy=0), running=8, limit=8)


def test_the_gate_admits_a_fetch_when_no_reader_waits_any_more() -> None:
    foreground = Foreground(queued=True, busy=2)
    gate = AdmissionGate(lambda: foreground, 2)
    waits = 0

    def wait(seconds: float) -> bool:
        nonlocal foreground, waits
        waits += 1
        if waits == 3:
            foreground = Foreground(queued=False, busy=0)
        return False

    assert gate.enter(wait)
    assert waits == 3
    assert gate.enter(wait)
    assert not gate.enter(lambda seconds: True), (
        "it admits no third fetch, and a fetch that is not wanted any more leaves"
    )
    gate.leave()
    assert gate.enter(wait)


def test_the_limit_of_the_gate_is_shared_by_all_warmups() -> None:
    gate = AdmissionGate(lambda: Foreground(queued=False, busy=0), 3)
    inside, highest = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def work() -> None:
        nonlocal inside, highest
        for _ in range(20):
            assert gate.enter(lambda seconds: pause.wait(0.0005))
            with lock:
                inside += 1
                highest = max(highest, inside)
            pause.wait(0.0005)
            with lock:
                inside -= 1
            gate.leave()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 1 < highest <= 3
