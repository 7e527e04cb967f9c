"""Any order of reads, permissions, outages, pauses and restarts: bytes only for those whom the store has let read."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import AccessDenied, EndpointUnreachable, HayloftError
from csi_driver.reading.access import Access, Credential
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.support.scripted_store import ScriptedStore

pytestmark = pytest.mark.promise("S141")

AGE_S = 1000.0
OBJECTS = {"small": random_bytes(1, 9_000), "large": random_bytes(2, 6 * CHUNK_BYTES + 5)}
NAMES = ("one", "two", "three")

names, keys = st.sampled_from(NAMES), st.sampled_from(sorted(OBJECTS))


class World:
    """What the store knows: who may read which object, and when it let whom read last."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0
        self.reachable = True
        self.permitted = {(name, key) for name in NAMES for key in OBJECTS}
        self.allowed_s: dict[tuple[str, str], float] = {}
        self.requests = 0


class GuardedStore(ScriptedStore):
    def __init__(self, world: World, name: str) -> None:
        super().__init__(OBJECTS)
        self.world, self.name = world, name

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        world = self.world
        world.requests += 1
        if not world.reachable:
            raise EndpointUnreachable("down")
        if (self.name, key) not in world.permitted:
            raise AccessDenied("no")
        world.allowed_s[self.name, key] = world.now_s
        yield from super().read_range(key, byte_range, if_match=if_match)


class AccessModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.world = World()
        self.stores = {name: GuardedStore(self.world, name) for name in NAMES}
        self.cached: dict[str, set[int]] = {key: set() for key in OBJECTS}
        self.proven_s: dict[tuple[str, str], float] = {}
        """The least time of the proof: it may have been renewed since."""

    @initialize()
    def start(self) -> None:
        directory = Path(self.directory.name)
        self.chunks = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0))
        self.cache = OwnLoopCache(self.chunks, ReadingSettings(fetch_threads=2, readahead_fetches=1))
        self.accesses = {name: self.access(number) for number, name in enumerate(NAMES)}

    def access(self, number: int) -> Access:
        own = number.to_bytes(16, "big")
        return Access(Credential(own, own, AGE_S), len(OBJECTS), clock=lambda: self.world.now_s)

    @rule()
    def restart(self) -> None:
        self.stop()
        self.start()

    @rule(name=names)
    def mount_again(self, name: str) -> None:
        self.accesses[name] = self.access(NAMES.index(name))

    @rule(name=names, key=keys)
    def revoke(self, name: str, key: str) -> None:
        self.world.permitted.discard((name, key))

    @rule(name=names, key=keys)
    def grant(self, name: str, key: str) -> None:
        self.world.permitted.add((name, key))

    @rule(share=st.floats(0, 1.5))
    def pause(self, share: float) -> None:
        self.world.now_s += share * AGE_S

    @rule(reachable=st.booleans())
    def connect(self, reachable: bool) -> None:
        self.world.reachable = reachable
        self.cache.proofs._unreachable_until_s.clear()  # as after the time until the store is asked again

    @rule(name=names, key=keys, chunk=st.integers(0, 6))
    def read(self, name: str, key: str, chunk: int) -> None:
        world = self.world
        chunk = chunk if key == "large" else 0
        proven_s = self.proven_s.get((name, key))
        valid = proven_s is not None and world.now_s - proven_s < AGE_S
        result = self.result_of(name, key, chunk)
        if isinstance(result, bytes):
            assert result == OBJECTS[key][chunk * CHUNK_BYTES :][:CHUNK_BYTES]
            # The store itself has let this name read the object: recently, or it cannot be asked now.
            allowed_s = world.allowed_s.get((name, key))
            assert allowed_s is not None
            assert world.now_s - allowed_s <= AGE_S or not world.reachable
        else:
            assert not world.reachable or (name, key) not in world.permitted
            # The times of proofs are whole seconds, so one may end a second early.
            recent = proven_s is not None and world.now_s - proven_s < AGE_S - 1
            assert not (recent and chunk in self.cached[key]), "what was allowed is remembered"
        if isinstance(result, bytes):
            self.cached[key].add(chunk)
            if world.reachable and not valid:
                self.proven_s[name, key] = world.now_s

    def result_of(self, name: str, key: str, chunk: int) -> bytes | HayloftError:
        store = self.stores[name]
        source = ObjectSource(store.version(key), store, 0, Share(), self.accesses[name], sorted(OBJECTS).index(key))
        results: list[OpenObject | HayloftError] = []
        answers: list[bytes | HayloftError] = []
        done = threading.Semaphore(0)

        def open_answer(result: OpenObject | HayloftError) -> None:
            results.append(result)
            done.release()

        self.cache.open(source, open_answer)
        assert done.acquire(timeout=30)
        opened = results[0]
        if isinstance(opened, HayloftError):
            return opened

        def answer(data: list[memoryview] | HayloftError) -> None:
            answers.append(data if isinstance(data, HayloftError) else b"".join(data))
            done.release()

        opened.read(chunk * CHUNK_BYTES, CHUNK_BYTES, answer)
        assert done.acquire(timeout=30)
        opened.close()
        return answers[0]

    def stop(self) -> None:
        self.cache.close()
        self.chunks.close()

    def teardown(self) -> None:
        self.stop()
        self.directory.cleanup()


AccessModel.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestAccessModel = AccessModel.TestCase
