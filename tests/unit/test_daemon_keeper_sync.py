"""What a daemon hands to the keeper, with a keeper in memory that forgets and falls silent."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from csi_driver.daemon.keeper_sync import KeeperSync
from csi_driver.model.errors import DaemonUnavailable


class ForgetfulKeeper:
    """Holds copies, as the real one does; ``silent`` lets every call fail, ``before_put`` runs in the middle of one."""

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.silent = False
        self.before_put = lambda: None

    def put(self, name: str, descriptors: list[int]) -> None:
        self._answer()
        self.before_put()
        self.held[name] = [os.dup(number) for number in descriptors]

    def get(self, name: str) -> list[int]:
        self._answer()
        return [os.dup(number) for number in self.held.get(name, [])]

    def drop(self, name: str) -> None:
        self._answer()
        for number in self.held.pop(name, []):
            os.close(number)

    def names(self) -> list[str]:
        self._answer()
        return sorted(self.held)

    def forget_all(self) -> None:
        for name in list(self.held):
            self.drop(name)

    def _answer(self) -> None:
        if self.silent:
            raise DaemonUnavailable("the keeper does not answer")


@pytest.fixture
def keeper() -> Iterator[ForgetfulKeeper]:
    keeper = ForgetfulKeeper()
    yield keeper
    keeper.silent = False
    keeper.forget_all()


@pytest.fixture
def pipe() -> Iterator[int]:
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


SECRETS = {"secret_access_key": "hush"}


def test_what_was_handed_over_is_taken_by_the_next_daemon_with_its_secrets(keeper: ForgetfulKeeper, pipe: int) -> None:
    KeeperSync(keeper).hold("m-1", pipe, SECRETS)
    taken = KeeperSync(keeper).take("m-1")
    assert taken is not None
    descriptor, secrets = taken
    assert (os.fstat(descriptor).st_ino, secrets) == (os.fstat(pipe).st_ino, SECRETS)
    os.close(descriptor)
    assert KeeperSync(keeper).take("m-2") is None


def test_what_the_keeper_lost_it_is_given_again_and_nothing_else(
    keeper: ForgetfulKeeper, pipe: int, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = KeeperSync(keeper)
    keeping.hold("m-1", pipe, SECRETS)
    keeping.adopted("m-2", pipe, {})
    keeping.hold("m-3", pipe, {})
    keeping.forget("m-3")
    keeper.forget_all()
    keeping.hand_over_missing()
    assert keeper.names() == ["m-1", "m-2"]
    assert json.loads(os.pread(keeper.held["m-1"][1], 1000, 0)) == SECRETS
    assert "hush" not in caplog.text


def test_a_silent_keeper_is_told_of_once_and_given_all_when_it_is_back(
    keeper: ForgetfulKeeper, pipe: int, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = KeeperSync(keeper)
    keeper.silent = True
    with caplog.at_level(logging.WARNING):
        keeping.hold("m-1", pipe, {})
        for _ in range(3):
            keeping.hand_over_missing()
    assert caplog.text.count("does not answer") == 1
    keeper.silent = False
    keeping.hand_over_missing()
    assert keeper.names() == ["m-1"]


def test_a_mount_that_ends_while_it_is_handed_over_is_not_held(keeper: ForgetfulKeeper, pipe: int) -> None:
    keeping = KeeperSync(keeper)
    keeper.before_put = lambda: keeping.forget("m-1")
    keeping.hold("m-1", pipe, {})
    assert keeper.names() == []


def test_a_daemon_that_ends_leaves_what_is_held_and_gives_what_is_missing(keeper: ForgetfulKeeper, pipe: int) -> None:
    keeping = KeeperSync(keeper)
    keeping.hold("m-1", pipe, {})
    keeper.forget_all()
    keeping.let_go()
    assert keeper.names() == ["m-1"]
    keeper.forget_all()
    keeping.hand_over_missing()
    assert keeper.names() == [], "its descriptors are closed by now"


def test_a_keeper_that_does_not_answer_holds_nothing_for_a_new_daemon(keeper: ForgetfulKeeper) -> None:
    keeper.silent = True
    assert KeeperSync(keeper).held(patience_s=0.0) == set()
    assert KeeperSync(None).held() == set()


def test_without_a_keeper_everything_is_well(pipe: int) -> None:
    keeping = KeeperSync(None)
    keeping.hold("m-1", pipe, {})
    keeping.hand_over_missing()
    keeping.forget("m-1")
    keeping.let_go()
    assert not keeping.exists
    assert keeping.take("m-1") is None
