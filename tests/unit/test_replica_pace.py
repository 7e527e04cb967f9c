"""When a replica of the cluster's cache is passed over because it is slow, and for how long."""

from __future__ import annotations

import pytest

from csi_driver.objects.tier.replica_pace import (
    ANSWERS,
    COMPARE_EVERY,
    FIRST_PAUSE_S,
    LEAST_S,
    LONGEST_PAUSE_S,
    TRIAL_S,
    ReplicaPace,
)

pytestmark = pytest.mark.promise("S689")


class Replicas:
    """Three, on a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pace = ReplicaPace(lambda: self.now_s)
        self.waits_s = {"a": 4.0, "b": 0.001, "c": 0.001}
        self.bucket_s: float | None = 0.02

    def ask(self, name: str) -> bool:
        """Whether it was asked."""
        if not self.pace.may_ask(name):
            return False
        if self.bucket_s is not None:
            self.pace.bucket(self.bucket_s)
        self.pace.hit(name, self.waits_s[name])
        return True

    def ask_all(self, times: int = ANSWERS) -> int:
        """How often the slow one was asked."""
        return sum([self.ask(name) for _ in range(times) for name in ("b", "c", "a")][2::3])


def test_a_slow_replica_is_passed_over_after_a_few_answers() -> None:
    replicas = Replicas()
    assert replicas.ask_all(50) == ANSWERS
    assert replicas.pace.passed_over() == 1
    assert replicas.ask("b")


def test_after_each_pause_a_few_requests_find_out() -> None:
    replicas = Replicas()
    replicas.ask_all(50)
    pauses, asked = [], 0
    for _ in range(6):
        began_s = replicas.now_s
        while not replicas.pace.may_ask("a"):
            replicas.now_s += 1.0
            replicas.ask_all(1) if replicas.now_s % 7 == 0 else None
        pauses.append(replicas.now_s - began_s)
        replicas.pace.hit("a", 4.0)
        asked = 1 + replicas.ask_all(50)
        assert asked <= ANSWERS
    assert pauses[0] >= FIRST_PAUSE_S - 1
    assert max(pauses) <= LONGEST_PAUSE_S + 7


def test_one_that_is_fast_again_is_asked_again() -> None:
    replicas = Replicas()
    replicas.ask_all(50)
    replicas.now_s += FIRST_PAUSE_S + 1
    replicas.waits_s["a"] = 0.001
    assert replicas.ask_all(50) == 50
    replicas.waits_s["a"] = 4.0
    replicas.ask_all(50)
    replicas.now_s += FIRST_PAUSE_S + 1
    assert replicas.pace.may_ask("a"), "the pause is the first one again"


def test_requests_that_never_end_are_followed_by_others() -> None:
    replicas = Replicas()
    replicas.ask_all(50)
    replicas.now_s += FIRST_PAUSE_S + 1
    assert sum(replicas.pace.may_ask("a") for _ in range(50)) == ANSWERS
    replicas.now_s += TRIAL_S + 1
    assert sum(replicas.pace.may_ask("a") for _ in range(50)) == ANSWERS


def test_as_slow_as_the_bucket_is_not_slow() -> None:
    replicas = Replicas()
    for _ in range(50):
        replicas.bucket_s = 1.5
        assert replicas.ask("a")


def test_one_that_many_nodes_ask_at_a_time_is_not_slow() -> None:
    """Some hundred milliseconds: it keeps all these nodes from the bucket."""
    replicas = Replicas()
    replicas.waits_s["a"] = LEAST_S / 2
    assert replicas.ask_all(50) == 50


def test_all_replicas_together_are_not_left() -> None:
    replicas = Replicas()
    replicas.waits_s = dict.fromkeys("abc", 4.0)
    for _ in range(50):
        replicas.ask_all(1)
    assert replicas.pace.passed_over() == 1


def test_a_single_slow_replica_is_compared_with_the_bucket() -> None:
    """Nothing is known of the bucket while the replica has everything: some requests go there."""
    replicas = Replicas()
    replicas.bucket_s = None
    missed = asked = 0
    while not replicas.pace.passed_over():
        if replicas.ask("a"):
            asked += 1
        else:
            missed += 1
            replicas.pace.bucket(0.02)
        assert asked <= 2 * ANSWERS
    assert missed == ANSWERS


def test_replicas_that_are_slow_together_are_not_compared_with_the_bucket() -> None:
    """What is slow then is this node, or its link: the bucket is to send nothing for that."""
    replicas = Replicas()
    replicas.bucket_s, replicas.waits_s = None, {"a": 4.0, "b": 3.0, "c": 2.0}
    assert replicas.ask_all(COMPARE_EVERY * ANSWERS) == COMPARE_EVERY * ANSWERS
    assert replicas.pace.passed_over() == 0


def test_what_has_left_is_forgotten() -> None:
    replicas = Replicas()
    replicas.ask_all(50)
    replicas.pace.retain(frozenset("bc"))
    assert replicas.pace.passed_over() == 0
    assert replicas.pace.may_ask("a")
