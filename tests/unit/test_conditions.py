"""The table of conditions: what Kubernetes demands of reasons, statuses and messages."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.health_messages import storage_health, volume_condition, volume_health
from csi_driver.model import conditions
from csi_driver.model.conditions import ALL, UNKNOWN, Condition, Severity, distinct, of_reason
from csi_driver.rpc.pb import csi_pb2

LISTS = st.lists(st.sampled_from(ALL), max_size=2 * len(ALL))


@pytest.mark.promise("S351")
@pytest.mark.parametrize("condition", ALL, ids=lambda condition: condition.reason)
def test_a_row_has_a_name_in_camel_case_and_a_text_without_numbers(condition: Condition) -> None:
    assert re.fullmatch(r"(?:[A-Z][a-z]+)+", condition.reason)
    assert len(condition.reason) <= 64
    assert not re.search(r"\d", condition.message)
    assert 40 < len(condition.message) < 400, "a sentence and what to do"
    assert condition.sentence[0].isupper()
    assert condition.remedy[0].isupper()
    assert not condition.sentence.endswith(".")
    assert not condition.remedy.endswith(".")


def test_every_reason_and_every_constant_is_one_row() -> None:
    named = [value for value in vars(conditions).values() if isinstance(value, Condition)]
    assert sorted(named, key=ALL.index) == list(ALL)
    assert len({condition.reason for condition in ALL}) == len(ALL)
    assert [of_reason(condition.reason) for condition in ALL] == list(ALL)
    assert of_reason("OfALaterVersion") is UNKNOWN


@pytest.mark.promise("S351")
@given(LISTS)
def test_no_set_of_conditions_gives_two_entries_of_one_status_and_reason(found: list[Condition]) -> None:
    entries = volume_health("v", found).health_statuses
    assert {entry.reason for entry in entries} == {condition.reason for condition in found}
    assert len({(entry.status, entry.reason) for entry in entries}) == len(entries)
    assert csi_pb2.UNKNOWN_VOLUME_HEALTH_TYPE not in {entry.status for entry in entries}
    backends = storage_health(found).backend_health
    assert len({(entry.status, entry.reason) for entry in backends}) == len(backends)
    assert csi_pb2.UNKNOWN_STORAGE_HEALTH_ERROR_TYPE not in {entry.status for entry in backends}
    for message in [*(entry.message for entry in entries), *(entry.message for entry in backends)]:
        assert not re.search(r"\d", message)


@pytest.mark.promise("S351")
@given(LISTS, st.randoms())
def test_the_order_and_the_number_of_findings_change_nothing(found: list[Condition], draw: object) -> None:
    shuffled = [*found, *found]
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert volume_health("v", shuffled) == volume_health("v", found)
    assert volume_condition(shuffled) == volume_condition(found)


@pytest.mark.promise("S350")
@given(LISTS)
def test_both_apis_say_the_same(found: list[Condition]) -> None:
    old, new = volume_condition(found), volume_health("v", found).health_statuses
    assert old.abnormal == bool(new)
    assert old.message, "CSI requires one of a volume that is well, too"
    for entry in new:
        assert entry.message in old.message


def test_of_several_conditions_the_worst_is_first() -> None:
    order = [Severity.DATA_LOSS, Severity.INACCESSIBLE, Severity.DEGRADED]
    ranks = [order.index(condition.severity) for condition in distinct(ALL)]
    assert ranks == sorted(ranks)


def test_of_a_node_only_what_concerns_its_storage_is_reported() -> None:
    reported = {entry.reason: entry.status for entry in storage_health(ALL).backend_health}
    assert reported.pop("CacheDaemonUnavailable") == csi_pb2.STORAGE_UNREACHABLE
    assert set(reported) == {"CacheDiskFailing", "CacheDiskFull", "CacheInodesExhausted", "KeeperUnavailable"}
    assert set(reported.values()) == {csi_pb2.STORAGE_DEGRADED}
