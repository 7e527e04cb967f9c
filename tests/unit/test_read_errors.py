"""What the read errors of a volume leave: a count by errno, a line in the log, and a condition while they last."""

from __future__ import annotations

import logging

import pytest

from csi_driver.daemon.read_errors import LASTS_S, LOG_INTERVAL_S, MOST_KEYS, ReadErrorCounts, ReadErrors
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
    ObjectChanged,
    StoreProtocolError,
    StoreUnavailable,
)
from csi_driver.reading.access import Access
from tests.unit.test_disk_health import Clock

OF_ALL = [CredentialsRejected("renew"), EndpointUnreachable("gone"), StoreUnavailable("late")]
OF_ONE = [AccessDenied("grant"), StoreProtocolError("odd"), InternalFailure("bug"), CacheDiskFailed("disk")]
PERMANENT = [ObjectChanged("changed"), ChecksumMismatch("damaged")]


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
    (message,) = errors.messages()
    assert error in PERMANENT or str(error) in message
    assert error in OF_ALL or "'data/a'" in message


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
    assert len(errors.messages()) == 1
    errors.access.note_fetch(2)
    assert errors.messages() == []
    errors.note(1, "b", type(error)("again"))
    assert "again" in errors.messages()[0]


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", OF_ONE, ids=repr)
def test_an_error_of_an_object_is_over_when_the_store_has_sent_that_one(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.note(1, "b", error)
    errors.access.note_fetch(2)
    assert errors.messages()[0].startswith("2 objects were not readable, such as 'a'")
    errors.access.note_fetch(0)
    assert errors.messages()[0].startswith("1 object was not readable")
    errors.access.note_fetch(1)
    assert errors.messages() == []


@pytest.mark.promise("S222")
@pytest.mark.parametrize("error", [*OF_ALL, *OF_ONE], ids=repr)
def test_an_error_that_is_not_seen_again_leaves_the_condition(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.clock.now += LASTS_S - 1
    errors.note(0, "a", error)
    errors.clock.now += LASTS_S - 1
    assert errors.messages()
    errors.clock.now += 2
    assert errors.messages() == []


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_a_permanent_error_stays_in_the_condition(error: HayloftError) -> None:
    errors = Errors()
    errors.note(0, "a", error)
    errors.access.note_fetch(0)
    errors.clock.now += 10 * LASTS_S
    assert errors.messages()


def test_a_killed_reader_and_a_share_of_descriptors_are_no_trouble_of_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = Errors()
    errors.note(0, "a", Interrupted("killed"))
    assert errors.counts.by_errno() == {}
    assert caplog.records == []
    errors.note(0, "a", DescriptorsExhausted("full"))
    assert errors.counts.by_errno() == {"ENFILE": 1}
    assert errors.messages() == [], "the file system reports it while it lasts"


def test_errors_of_many_objects_take_bounded_memory() -> None:
    errors = Errors()
    for row in range(MOST_KEYS + 5):
        errors.note(row, f"key-{row}", AccessDenied("no"))
    assert len(errors.access.failing) == MOST_KEYS
    assert errors.messages()[0].startswith("at least 10000 objects")
