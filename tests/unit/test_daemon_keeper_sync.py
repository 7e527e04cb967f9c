"""The daemon's synchronisation with the keeper; an in-memory keeper loses mounts and becomes unavailable."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from csi_driver.daemon.keeper_sync import KeeperSync
from csi_driver.model.errors import DaemonUnavailable


class InMemoryKeeper:
    """Holds copies, as the real one does. ``unavailable`` makes every call fail; ``before_put`` runs within a put."""

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.unavailable = False
        self.before_put = lambda: None

    def put(self, name: str, descriptors: list[int]) -> None:
        self._check_available()
        self.before_put()
        self.held[name] = [os.dup(number) for number in descriptors]

    def get(self, name: str) -> list[int]:
        self._check_available()
        return [os.dup(number) for number in self.held.get(name, [])]

    def drop(self, name: str) -> None:
        self._check_available()
        for number in self.held.pop(name, []):
            os.close(number)

    def names(self) -> list[str]:
        self._check_available()
        return sorted(self.held)

    def lose_all(self) -> None:
        for name in list(self.held):
            self.drop(name)

    def _check_available(self) -> None:
        if self.unavailable:
            raise DaemonUnavailable("the keeper does not answer")


@pytest.fixture
def keeper() -> Iterator[InMemoryKeeper]:
    keeper = InMemoryKeeper()
    yield keeper
    keeper.unavailable = False
    keeper.lose_all()


@pytest.fixture
def pipe() -> Iterator[int]:
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


SECRETS = {"secret_access_key": "hush"}


def test_a_mount_in_the_keeper_is_fetched_by_the_next_daemon_with_its_secrets(
    keeper: InMemoryKeeper, pipe: int
) -> None:
    KeeperSync(keeper).add("m-1", pipe, SECRETS)
    fetched = KeeperSync(keeper).fetch("m-1")
    assert fetched is not None
    descriptor, secrets = fetched
    assert (os.fstat(descriptor).st_ino, secrets) == (os.fstat(pipe).st_ino, SECRETS)
    os.close(descriptor)
    assert KeeperSync(keeper).fetch("m-2") is None


def test_a_resync_restores_the_mounts_that_the_keeper_lost_and_no_others(
    keeper: InMemoryKeeper, pipe: int, caplog: pytest.LogCaptureFixture
) -> None:
    keeper_sync = KeeperSync(keeper)
    keeper_sync.add("m-1", pipe, SECRETS)
    keeper_sync.adopted("m-2", pipe, {})
    keeper_sync.add("m-3", pipe, {})
    keeper_sync.remove("m-3")
    keeper.lose_all()
    keeper_sync.resync()
    assert keeper.names() == ["m-1", "m-2"]
    assert json.loads(os.pread(keeper.held["m-1"][1], 1000, 0)) == SECRETS
    assert "hush" not in caplog.text


def test_an_unavailable_keeper_is_logged_once_and_resynced_when_it_answers_again(
    keeper: InMemoryKeeper, pipe: int, caplog: pytest.LogCaptureFixture
) -> None:
    keeper_sync = KeeperSync(keeper)
    keeper.unavailable = True
    with caplog.at_level(logging.WARNING):
        keeper_sync.add("m-1", pipe, {})
        for _ in range(3):
            keeper_sync.resync()
    assert caplog.text.count("does not answer") == 1
    keeper.unavailable = False
    keeper_sync.resync()
    assert keeper.names() == ["m-1"]


def test_a_mount_that_ends_while_it_is_passed_to_the_keeper_is_dropped_there(keeper: InMemoryKeeper, pipe: int) -> None:
    keeper_sync = KeeperSync(keeper)
    keeper.before_put = lambda: keeper_sync.remove("m-1")
    keeper_sync.add("m-1", pipe, {})
    assert keeper.names() == []


def test_a_stopping_daemon_resyncs_the_keeper_and_leaves_it_its_mounts(keeper: InMemoryKeeper, pipe: int) -> None:
    keeper_sync = KeeperSync(keeper)
    keeper_sync.add("m-1", pipe, {})
    keeper.lose_all()
    keeper_sync.stop()
    assert keeper.names() == ["m-1"]
    keeper.lose_all()
    keeper_sync.resync()
    assert keeper.names() == [], "after the stop its descriptors may be closed"


def test_after_the_timeout_of_an_unavailable_keeper_a_new_daemon_adopts_nothing(keeper: InMemoryKeeper) -> None:
    keeper.unavailable = True
    assert KeeperSync(keeper).held_ids(timeout_s=0.0) == set()
    assert KeeperSync(None).held_ids() == set()


def test_without_a_keeper_every_method_does_nothing(pipe: int) -> None:
    keeper_sync = KeeperSync(None)
    keeper_sync.add("m-1", pipe, {})
    keeper_sync.resync()
    keeper_sync.remove("m-1")
    keeper_sync.stop()
    assert not keeper_sync.exists
    assert keeper_sync.fetch("m-1") is None


@pytest.mark.promise("S263")
def test_renewed_secrets_reach_a_keeper_that_did_not_answer_then(keeper: InMemoryKeeper, pipe: int) -> None:
    keeper_sync = KeeperSync(keeper)
    keeper_sync.add("m-1", pipe, SECRETS)
    keeper.unavailable = True
    keeper_sync.add("m-1", pipe, {"secret_access_key": "renewed"})
    keeper.unavailable = False
    keeper_sync.resync()
    fetched = KeeperSync(keeper).fetch("m-1")
    assert fetched is not None
    descriptor, secrets = fetched
    os.close(descriptor)
    assert secrets == {"secret_access_key": "renewed"}
    puts: list[str] = []
    keeper.before_put = lambda: puts.append("put")
    keeper_sync.resync()
    assert puts == [], "what the keeper holds is passed once"
