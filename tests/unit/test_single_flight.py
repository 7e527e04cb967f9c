"""Shared work: one run for equal requests, which ends with the last of its callers and not before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_driver.model.errors import Interrupted
from csi_driver.rpc import callers
from csi_driver.rpc.callers import Caller
from csi_driver.volumes.single_flight import SingleFlight
from tests.support.daemons import wait_until


class Shared:
    """Work that waits for its release, or until all callers are gone."""

    def __init__(self) -> None:
        self.flight: SingleFlight[str] = SingleFlight()
        self.runs = 0
        self.release = threading.Event()

    def call(self, caller: Caller) -> str:
        with callers.working_for(caller):
            return self.flight.run("volume", "request", self._work)

    def _work(self) -> str:
        self.runs += 1
        caller = callers.current()
        while not self.release.wait(0.01):
            callers.require(caller)
        return "result"

    def callers_of_the_run(self) -> int:
        call = self.flight._in_flight.get("volume")
        return 0 if call is None else len(call.callers.members)


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.mark.promise("S154")
def test_work_goes_on_without_its_first_caller_and_ends_with_the_last(shared: Shared) -> None:
    first, second = Caller(), Caller()
    with ThreadPoolExecutor(2) as pool:
        leading = pool.submit(shared.call, first)
        wait_until(lambda: shared.callers_of_the_run() == 1)
        following = pool.submit(shared.call, second)
        wait_until(lambda: shared.callers_of_the_run() == 2)
        first.gone = True
        with pytest.raises(TimeoutError):
            leading.result(0.3)
        second.gone = True
        for call in (leading, following):
            with pytest.raises(Interrupted):
                call.result(30)


@pytest.mark.promise("S154")
def test_a_follower_that_is_gone_frees_its_thread(shared: Shared) -> None:
    second = Caller()
    with ThreadPoolExecutor(2) as pool:
        leading = pool.submit(shared.call, Caller())
        wait_until(lambda: shared.callers_of_the_run() == 1)
        following = pool.submit(shared.call, second)
        second.gone = True
        with pytest.raises(Interrupted):
            following.result(30)
        shared.release.set()
        assert leading.result(30) == "result"


def test_a_caller_that_joins_work_as_it_ends_for_lack_of_callers_begins_anew(shared: Shared) -> None:
    first = Caller()
    with ThreadPoolExecutor(2) as pool:
        leading = pool.submit(shared.call, first)
        wait_until(lambda: shared.callers_of_the_run() == 1)
        call = shared.flight._in_flight["volume"]
        first.gone = True
        with pytest.raises(Interrupted):
            leading.result(30)
        shared.flight._in_flight["volume"] = call  # as the second caller sees it in the race
        following = pool.submit(shared.call, Caller())
        wait_until(lambda: len(call.callers.members) >= 2)
        del shared.flight._in_flight["volume"]
        wait_until(lambda: shared.runs == 2)
        shared.release.set()
        assert following.result(30) == "result"
