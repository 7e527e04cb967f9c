"""What the read errors of a volume leave: a count by errno, a line in the log, and a condition while they last."""

from __future__ import annotations

import logging

import pytest

from csi_driver.daemon.read_errors import LASTS_S, LOG_INTERVAL_S, MOST_KEYS, ReadErrorCounts, ReadErrors
from csi_driver.model import conditions
from csi_driver.model.errors import (
    AccessDenied,
    CacheDiskFailed,
    ChecksumMismatch,
    CredentialsRejected,
    DescriptorsExhausted,
    EndpointUnreachable,
    HayloftError,
    InternalFailure,
    Interrupted,
    ObjectArchived,
    ObjectChanged,
    ObjectNotFound,
    StoreProtocolError,
    StoreUnavailable,
)
from csi_driver.reading.access import Access
from tests.unit.test_disk_health import Clock

OF_ALL = [CredentialsRejected("renew"), EndpointUnreachable("gone"), StoreUnavailable("late")]
OF_ONE = [AccessDenied("grant"), StoreProtocolError("odd"), InternalFailure("bug"), CacheDiskFailed("disk")]
PERMANENT = [ObjectChanged("changed"), ObjectNotFound("gone"), ChecksumMismatch("damaged"), ObjectArchived("frozen")]
CONDITION_OF = {
    CredentialsRejected: conditions.CREDENTIALS_REJECTED,
    EndpointUnreachable: conditions.STORE_UNREACHABLE,
    StoreUnavailable: conditions.STORE_FAILING,
    AccessDenied: conditions.ACCESS_DENIED,
    StoreProtocolError: conditions.READS_FAILING,
    InternalFailure: conditions.READS_FAILING,
    CacheDiskFailed: conditions.READS_FAILING,
    ObjectChanged: conditions.OBJECTS_CHANGED,
    ObjectNotFound: conditions.OBJECTS_GONE,
    ChecksumMismatch: conditions.OBJECTS_DAMAGED,
    ObjectArchived: conditions.OBJECTS_ARCHIVED,
}


class Errors(ReadErrors):
    """Of a volume of three files."""

    def __init__(self) -> None:
        self.access, self.counts, self.clock = Access(files=3), ReadErrorCounts(), Clock()
        super().__init__("volume-1", lambda: self.access, self.counts, self.clock)


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", [*OF_ALL, *OF_ONE, *PERMANENT], ids=repr)
def test_an_error_is_counted_logged_and_shown(error: HayloftError, caplog: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    errors.note(0, "data/a", error)
    assert list(errors.counts.by_errno().values()) == [1]
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert errors.conditions() == [CONDITION_OF[type(error)]]


@pytest.mark.promise("S222")
def test_of_each_kind_one_line_a_minute_is_logged_with_the_number_of_those_that_were_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = Errors()
    for _ in range(100):
        errors.note(0, "a", AccessDenied("no"))
        errors.note(1, "b", StoreProtocolError("odd"))
    assert len(caplog.records) == 2
    errors.clock.now += LOG_INTERVAL_S
    errors.note(0, "a", AccessDenied("no"))
    assert len(caplog.records) == 3
    assert caplog.records[-1].fields["not_logged"] == 99  # type: ignore[attr-defined]
    assert errors.counts.by_errno() == {"EACCES": 101, "EIO": 100}


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", OF_ALL, ids=repr)
def test_an_error_of_the_store_is_over_when_it_has_sent_any_object(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.note(1, "b", error)
    assert len(errors.conditions()) == 1
    errors.access.note_fetch(2)
    assert errors.conditions() == []
    errors.note(1, "b", type(error)("again"))
    assert errors.conditions() == [CONDITION_OF[type(error)]]


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", OF_ONE, ids=repr)
def test_an_error_of_an_object_is_over_when_the_store_has_sent_that_one(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.note(1, "b", error)
    errors.access.note_fetch(2)
    assert len(errors.conditions()) == 1
    errors.access.note_fetch(0)
    assert len(errors.conditions()) == 1
    errors.access.note_fetch(1)
    assert errors.conditions() == []


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", [*OF_ALL, *OF_ONE], ids=repr)
def test_an_error_that_is_not_seen_again_leaves_the_condition(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.clock.now += LASTS_S - 1
    errors.note(0, "a", error)
    errors.clock.now += LASTS_S - 1
    assert errors.conditions()
    errors.clock.now += 2
    assert errors.conditions() == []


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_a_permanent_error_stays_in_the_condition(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.access.note_fetch(0)
    errors.clock.now += 10 * LASTS_S
    assert errors.conditions()


def test_a_killed_reader_and_a_share_of_descriptors_are_no_trouble_of_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = Errors()
    errors.note(0, "a", Interrupted("killed"))
    assert errors.counts.by_errno() == {}
    assert caplog.records == []
    errors.note(0, "a", DescriptorsExhausted("full"))
    assert errors.counts.by_errno() == {"ENFILE": 1}
    assert errors.conditions() == [], "the file system reports it while it lasts"


def test_errors_of_many_objects_take_bounded_memory() -> None:
    errors = Errors()
    for row in range(MOST_KEYS + 5):
        errors.note(row, f"key-{row}", AccessDenied("no"))
    assert len(errors.access.failing) == MOST_KEYS
    assert errors.conditions() == [conditions.ACCESS_DENIED]


def test_a_denial_is_of_some_objects_once_the_store_has_sent_another() -> None:
    errors = Errors()
    errors.note(0, "a", AccessDenied("no"))
    assert errors.conditions() == [conditions.ACCESS_DENIED]
    errors.access.note_fetch(1)
    errors.note(0, "a", AccessDenied("no"))
    assert errors.conditions() == [conditions.OBJECTS_FORBIDDEN], "and it stays so while it lasts"
