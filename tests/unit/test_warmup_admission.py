"""Admission: warmups leave the fetch threads to readers."""

from __future__ import annotations

import threading
import time

from csi_driver.reading.fair_shares import Share
from csi_driver.reading.warmup_admission import AdmissionGate, Foreground, most_beside


def test_no_fetch_begins_while_a_reader_waits_and_one_while_readers_fetch() -> None:
    assert most_beside(Foreground(queued=True, busy=0), 8) == 0
    assert most_beside(Foreground(queued=False, busy=3), 8) == 1
    assert most_beside(Foreground(queued=False, busy=3), 8, light=True) == 8
    assert most_beside(Foreground(queued=False, busy=0), 8) == 8


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

    slot = gate.enter(wait)
    assert slot
    assert waits == 3
    assert gate.enter(wait)
    assert not gate.enter(lambda seconds: True), (
        "it admits no third fetch, and a fetch that is not wanted any more leaves"
    )
    gate.leave(slot)
    assert gate.enter(wait)


def test_the_limit_of_the_gate_is_shared_by_all_warmups() -> None:
    gate = AdmissionGate(lambda: Foreground(queued=False, busy=0), 3)
    inside, highest = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def work() -> None:
        nonlocal inside, highest
        for _ in range(20):
            slot = gate.enter(lambda seconds: pause.wait(0.0005))
            assert slot
            with lock:
                inside += 1
                highest = max(highest, inside)
            pause.wait(0.0005)
            with lock:
                inside -= 1
            gate.leave(slot)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 1 < highest <= 3


def test_a_warmup_whose_store_hangs_leaves_the_gate_to_others() -> None:
    gate = AdmissionGate(lambda: Foreground(queued=False, busy=0), 4)
    hanging, other = Share("a", "store-a", "volume-a"), Share("b", "store-b", "volume-b")
    for _ in range(4):
        assert gate.enter(never, hanging)
    assert gate.enter(never, other), "it does not wait until the fetches of the other are stalled"


def test_fetches_without_progress_are_not_counted() -> None:
    gate = AdmissionGate(lambda: Foreground(queued=False, busy=1), 4, stall_s=0.05)
    one, other = Share("", "store", "volume-a"), Share("", "store", "volume-b")
    assert gate.enter(never, one)
    assert gate.enter(lambda seconds: time.sleep(seconds) is not None, other)


def never(seconds: float) -> bool:
    raise AssertionError("it had to wait")
