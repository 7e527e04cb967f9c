"""Shares of the listings: of all, of a namespace and of a store; a bounded wait, fair between namespaces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from csi_driver.model.errors import BudgetExceeded, Interrupted
from csi_driver.rpc import callers
from csi_driver.rpc.callers import Caller
from csi_driver.settings import ListingSettings
from csi_driver.volumes.listing_admission import OF_ADMINISTRATORS, OF_STRANGERS, ListingAdmission, Patience
from tests.support.daemons import wait_until

AT_ONCE = Patience(0.0, OF_STRANGERS.waiting)


class Listings:
    """Listings in threads, which run until they are released."""

    def __init__(self, **settings: int) -> None:
        self.admission = ListingAdmission(ListingSettings(**settings))
        self.running: list[str] = []
        self.refused: list[BudgetExceeded] = []
        self._release = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, namespace: str, store: str = "store") -> None:
        thread = threading.Thread(target=self._list, args=(namespace, store))
        self._threads.append(thread)
        thread.start()

    def _list(self, namespace: str, store: str) -> None:
        try:
            with self.admission.admitted(namespace, store, Patience(60.0, OF_STRANGERS.waiting)):
                self.running.append(namespace)
                self._release.wait(30)
        except BudgetExceeded as error:
            self.refused.append(error)

    def end(self) -> None:
        self._release.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def refusal(admission: ListingAdmission, namespace: str, store: str = "store") -> str:
    with pytest.raises(BudgetExceeded) as caught, admission.admitted(namespace, store, AT_ONCE):
        pass
    return str(caught.value)


@pytest.mark.promise("S150")
def test_a_namespace_cannot_occupy_all_listings(stack: ExitStack) -> None:
    admission = ListingAdmission(ListingSettings(of_one_store=64))
    for number in range(4):
        stack.enter_context(admission.admitted("attackers", f"store-{number}", AT_ONCE))
    assert "one namespace may have (4)" in refusal(admission, "attackers")
    others = [f"team-{number}" for number in range(3)]
    for namespace in others:  # each finds a place, and none takes all that are left
        stack.enter_context(admission.admitted(namespace, namespace, AT_ONCE))
    stack.enter_context(admission.admitted("victims", "store", AT_ONCE))


@pytest.mark.promise("S150")
def test_a_namespace_cannot_occupy_a_store_that_others_use_too(stack: ExitStack) -> None:
    admission = ListingAdmission(ListingSettings())
    for _ in range(3):
        stack.enter_context(admission.admitted("attackers", "public", AT_ONCE))
    assert "the most that its store gets for one namespace" in refusal(admission, "attackers", "public")
    stack.enter_context(admission.admitted("victims", "public", AT_ONCE))


def test_one_listing_may_run_where_only_one_may() -> None:
    admission = ListingAdmission(ListingSettings(processes=1, of_one_namespace=1, of_one_store=1))
    for namespace in ("a", "b", ""):
        with admission.admitted(namespace, "store", AT_ONCE):
            assert "--listings=1" in refusal(admission, "c", "other")


def test_the_namespace_with_the_fewest_listings_is_next(stack: ExitStack) -> None:
    listings = Listings(processes=2, of_one_namespace=2)
    stack.callback(listings.end)
    blocker = stack.enter_context(ExitStack())
    blocker.enter_context(listings.admission.admitted("other", "x", AT_ONCE))
    listings.begin("greedy", "a")
    wait_until(lambda: listings.running == ["greedy"])
    listings.begin("greedy", "b")
    listings.begin("modest", "c")
    wait_until(lambda: len(listings.admission._waiting) == 2)
    blocker.close()
    wait_until(lambda: len(listings.running) == 2)
    assert listings.running == ["greedy", "modest"]


def test_only_so_many_of_a_namespace_wait_and_the_others_are_refused_at_once(stack: ExitStack) -> None:
    listings = Listings(of_one_namespace=1)
    stack.callback(listings.end)
    for number in range(1 + int(OF_STRANGERS.waiting)):
        listings.begin("attackers", f"store-{number}")
    wait_until(lambda: len(listings.admission._waiting) == int(OF_STRANGERS.waiting))
    assert "attackers" in refusal(listings.admission, "attackers", "one more")
    with listings.admission.admitted("victims", "store", AT_ONCE):
        pass


@pytest.mark.promise("S154")
def test_a_wait_ends_with_its_caller(stack: ExitStack) -> None:
    admission, caller = ListingAdmission(ListingSettings(of_one_namespace=1)), Caller(gone=True)
    stack.enter_context(admission.admitted("team", "store", AT_ONCE))
    with (
        callers.working_for(caller),
        pytest.raises(Interrupted),
        admission.admitted("team", "other", OF_ADMINISTRATORS),
    ):
        pass
    assert not admission._waiting
