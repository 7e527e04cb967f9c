"""The object table: every open gets one answer, and one fetch at a time serves all opens of an object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from csi_driver.reading.object_table import FromMemory, Key, Next, ObjectTable, Staged

KEYS: list[Key] = [("a", b"1"), ("a", b"2"), ("b", b"1")]
"""Two credentials of one object, and another object."""
CAPACITY = 3
BYTES = [memoryview(b"bytes")]


class Open(NamedTuple):
    number: int
    bytes_with_a_file: int
    urgent: bool = True


@dataclass(eq=False)
class Reader:
    key: Key
    opens: int = 0
    fetches: int = 0


class TableMachine(RuleBasedStateMachine):
    """The caller's part, as ``ReadThroughCache`` does it, and a model: what each open waits for."""

    opened: Bundle[Reader | None] = Bundle("opened")
    retained: Bundle[Reader | None] = Bundle("retained")

    def __init__(self) -> None:
        super().__init__()
        self.reserved = 0
        self.table: ObjectTable[Open, Reader] = ObjectTable(self.reserve)
        self.asked = 0
        self.answers: Counter[int] = Counter()
        self.waiting: dict[Key, list[Open]] = {}
        """By fetch in flight."""
        self.staged: dict[Key, Staged] = {}
        self.readers: dict[Key, Reader] = {}
        self.arrived: list[str] = []

    def reserve(self, count_bytes: int) -> bool:
        fits = self.reserved + count_bytes <= CAPACITY
        self.reserved += count_bytes * fits
        return fits

    def new_open(self, needs_file: bool) -> Open:
        self.asked += 1
        return Open(self.asked, int(needs_file))

    def expect_from_memory(self, key: Key, one: Open, served: FromMemory) -> None:
        assert served.parts is BYTES
        assert served.reserved_bytes in (0, one.bytes_with_a_file)
        self.answers[one.number] += 1

    # -- opens --

    @rule(target=opened, key=st.sampled_from(KEYS), file=st.booleans(), warm=st.booleans(), age=st.integers(0, 3))
    def ask(self, key: Key, file: bool, warm: bool, age: int) -> Reader | None:
        one, since = self.new_open(file), max(0, self.table.arrivals - age)
        found = self.table.ask(key, one, since, needs_file=not warm)
        if isinstance(found, FromMemory):
            assert key in self.staged
            assert warm or not file or self.staged[key].backlogged
            self.expect_from_memory(key, one, found)
            return None
        assert not (key in self.staged and (warm or not file)), "bytes in memory are served to those that need no file"
        if isinstance(found, Reader):
            assert found is self.readers[key]
            self.answers[one.number] += 1
            return found
        assert key not in self.readers
        if found is Next.WAIT:
            self.waiting[key].append(one)
            return None
        assert key not in self.waiting, "one fetch at a time"
        if found is Next.LOOK_AGAIN:
            assert key[0] in self.arrived[since:]
            self.answers[one.number] += 1  # it asks again, as another one
        else:
            assert found is Next.FETCH
            assert key[0] not in self.arrived[since:]
            self.waiting[key] = [one]
        return None

    @rule(target=opened, key=st.sampled_from(KEYS))
    def start(self, key: Key) -> Reader | None:
        one = self.new_open(True)
        found = self.table.start(key, one)
        if isinstance(found, Reader):
            assert found is self.readers[key]
            self.answers[one.number] += 1
            return found
        assert (found is Next.WAIT) == (key in self.waiting)
        if found is Next.WAIT:
            self.answers[one.number] += 1  # it reads past the cache
        else:
            self.waiting[key] = [one]
        return None

    @rule(key=st.sampled_from(KEYS))
    def join(self, key: Key) -> None:
        one = self.new_open(True)
        assert self.table.join(key, one) == (key in self.waiting)
        if key in self.waiting:
            self.waiting[key].append(one)
        else:
            self.answers[one.number] += 1  # it asks the store

    # -- fetches --

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), backlogged=st.booleans(), stage=st.booleans())
    def receive(self, data: st.DataObject, backlogged: bool, stage: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        staged = Staged(BYTES, backlogged)
        if stage:
            self.table.stage(key, staged)
            self.staged[key] = staged
        answers, others_wait = self.table.serve(key, staged)
        for one, served in answers:
            self.expect_from_memory(key, one, served)
            self.waiting[key].remove(one)
            assert backlogged or not one.bytes_with_a_file
        assert all(one.bytes_with_a_file for one in self.waiting[key])
        assert others_wait == bool(self.waiting[key])

    @precondition(lambda self: self.waiting)
    @rule(target=opened, data=st.data(), with_reader=st.booleans())
    def finish(self, data: st.DataObject, with_reader: bool) -> Reader | None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        waiting, reader = self.table.finish(key, (lambda first: Reader(key)) if with_reader else None)
        assert waiting == self.waiting.pop(key)
        self.arrived.append(key[0])
        self.answers.update(one.number for one in waiting)
        assert (reader is not None) == (with_reader and bool(waiting))
        if reader is None:
            return None
        assert reader.opens == len(waiting)
        self.readers[key] = reader
        for _ in waiting[1:]:
            self.leave(reader)
        return reader

    @rule(key=st.sampled_from(KEYS))
    def fail(self, key: Key) -> None:
        failed = self.table.fail(key)
        assert failed == self.waiting.pop(key, [])
        self.answers.update(one.number for one in failed)

    @rule(key=st.sampled_from(KEYS), own=st.booleans(), arrived=st.booleans())
    def unstage(self, key: Key, own: bool, arrived: bool) -> None:
        """``own`` is not: bytes that have taken their place."""
        self.table.unstage(key, None if own else Staged(BYTES, backlogged=False), arrived=arrived)
        if own:
            self.staged.pop(key, None)
        if arrived:
            self.arrived.append(key[0])

    # -- readers --

    @rule(reader=consumes(opened))
    def leave(self, reader: Reader | None) -> None:
        if reader is not None:
            self.ended(reader, self.table.leave(reader.key, reader))

    @rule(target=retained, reader=opened)
    def retain(self, reader: Reader | None) -> Reader | None:
        if reader is not None:
            self.table.retain(reader)
        return reader

    @rule(reader=consumes(retained))
    def release(self, reader: Reader | None) -> None:
        if reader is not None:
            self.ended(reader, self.table.release(reader.key, reader))

    def ended(self, reader: Reader, idle: bool) -> None:
        assert idle == (not reader.opens and not reader.fetches)
        if idle and self.readers.get(reader.key) is reader:
            del self.readers[reader.key]

    # -- always --

    @invariant()
    def every_open_is_answered_once_or_waits_once(self) -> None:
        waiting = Counter(one.number for opens in self.waiting.values() for one in opens)
        assert self.answers + waiting == Counter(range(1, self.asked + 1))

    @invariant()
    def the_table_holds_what_is_in_flight_and_nothing_else(self) -> None:
        assert self.table.arrivals == len(self.arrived)
        assert self.table.is_empty == (not self.waiting and not self.staged and not self.readers)
        for key in KEYS:
            assert self.table.look(key) == (self.readers.get(key), key in self.staged)


TestTable = TableMachine.TestCase
