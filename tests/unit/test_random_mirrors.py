"""Stores of one dataset that come, go, refuse, stall in the middle, lose objects or have others: what a reader gets is
the listed bytes or an error, and an error only if no store could have sent them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import (
    AccessDenied,
    CredentialsRejected,
    HayloftError,
    ObjectChanged,
    ObjectNotFound,
    TransientStoreError,
)
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.mirrors.mirror_reports import MirrorReports
from csi_driver.objects.mirrors.mirrored_store import Mirrored
from csi_driver.objects.mirrors.object_verdicts import REFUSED_S, SourceStore
from csi_driver.objects.mirrors.origin_speeds import ROUND_S, OriginSpeeds
from csi_driver.objects.store import read_whole
from tests.support.examples import drawn

DRAW = random.Random(19)
LISTED = {f"set/{name}": DRAW.randbytes(3000 + number) for number, name in enumerate("abcd")}
STATES = ("works", "away", "refuses", "unknown keys", "breaks off")


def etag_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@dataclass
class Origin:
    """A store whose answers the test decides."""

    endpoint: str
    objects: dict[str, bytes]
    etags: dict[str, str] = field(default_factory=dict)
    """Of objects whose ETag is another one than that of their bytes."""
    state: str = "works"
    bucket: str = "data"
    reads: int = 0

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        raise NotImplementedError

    def stat(self, key: str) -> ObjectInfo:
        content = self._content(key)
        return ObjectInfo(key, len(content), self._etag(key, content), 0)

    def etag(self, key: str) -> str:
        return self._etag(key, self.objects[key])

    def _etag(self, key: str, content: bytes) -> str:
        return self.etags.get(key) or etag_of(content)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        self.reads += 1
        content = self._content(key)
        if if_match is not None and if_match != self._etag(key, content):
            raise ObjectChanged(key)
        view = memoryview(content)[byte_range.start : byte_range.stop]
        half = len(view) // 2
        if half:
            yield view[:half]
        if self.state == "breaks off":
            raise TransientStoreError("reset")
        yield view[half:]

    def _content(self, key: str) -> bytes:
        """Looked up once: a rule may remove the object while a probe asks for it."""
        if self.state == "away":
            raise TransientStoreError("503")
        if self.state == "refuses":
            raise AccessDenied("403")
        if self.state == "unknown keys":
            raise CredentialsRejected("401")
        content = self.objects.get(key)
        if content is None:
            raise ObjectNotFound(key)
        return content

    def close(self) -> None:
        pass


class RandomMirrors(RuleBasedStateMachine):
    """A bucket with two mirrors. The clock stands still but for its rule; probes and explorations are threads."""

    @initialize(nearest=st.booleans())
    def begin(self, nearest: bool) -> None:
        self.now_s = 1000.0
        self.back_s: dict[tuple[int, str], float] = {}
        """When an object was put back: until then it may have been found missing."""
        self.origins = [Origin(f"http://store-{number}", dict(LISTED)) for number in range(3)]
        speeds = OriginSpeeds(3, lambda: self.now_s) if nearest else None
        self.speeds = speeds
        names = [origin.endpoint for origin in self.origins]
        sources = [SourceStore(name, origin, "set/") for name, origin in zip(names, self.origins, strict=True)]
        self.reports = MirrorReports(names, clock=lambda: self.now_s)
        self.store = Mirrored(sources, self.reports, speeds=speeds, clock=lambda: self.now_s)
        self.store.know_volume("volume-1", {key: len(content) for key, content in LISTED.items()}.get)

    @rule(number=st.integers(0, 2), state=st.sampled_from(STATES))
    def changes(self, number: int, state: str) -> None:
        self.origins[number].state = state

    @rule(number=st.integers(0, 2), key=st.sampled_from(sorted(LISTED)), how=st.sampled_from(["lost", "other", "back"]))
    def objects_change(self, number: int, key: str, how: str) -> None:
        origin = self.origins[number]
        origin.etags.pop(key, None)
        if how == "lost":
            origin.objects.pop(key, None)
        elif how == "other":
            origin.objects[key] = DRAW.randbytes(len(LISTED[key]))
        else:
            origin.objects[key] = LISTED[key]
            self.back_s[number, key] = self.now_s

    @rule(number=st.integers(1, 2), key=st.sampled_from(sorted(LISTED)), honest=st.booleans())
    def other_etags(self, number: int, key: str, honest: bool) -> None:
        """As of a multipart upload; or one that is no ETag of the bytes. Neither proves that the object is the same."""
        self.origins[number].etags[key] = f"{'a' * 32}-3" if honest else '"made up"'

    @rule(seconds=st.sampled_from([0.5, 2.0, ROUND_S + 1, REFUSED_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(number=st.integers(0, 2))
    def is_the_nearest(self, number: int) -> None:
        if self.speeds is not None:
            for each in range(3):
                with self.speeds.as_probe():
                    for _ in range(2):
                        self.speeds.note(each, 0.001 if each == number else 0.5)
            self.speeds.recovered()

    @rule(key=st.sampled_from(sorted(LISTED)), whole=st.booleans(), times=st.integers(1, 3))
    def read(self, key: str, whole: bool, times: int) -> None:
        content = LISTED[key]
        for _ in range(times):
            could = [number for number in range(3) if self._could_send(number, key)]
            first_refuses = self.origins[0].state in ("refuses", "unknown keys")
            found: list[bytes] = []
            try:
                if whole:
                    parts = read_whole(self.store, key, len(content), if_match=etag_of(content)).parts
                    found.extend(map(bytes, parts))
                else:
                    part = ByteRange(0, len(content))
                    found.extend(map(bytes, self.store.read_range(key, part, if_match=etag_of(content))))
            except HayloftError:
                assert content.startswith(b"".join(found)), "what was received before the error is of the listed bytes"
                assert first_refuses or not could or self._was_refused(could, key)
                continue
            assert b"".join(found) == content

    def _could_send(self, number: int, key: str) -> bool:
        origin = self.origins[number]
        return origin.state == "works" and key in origin.objects and origin.etag(key) == etag_of(LISTED[key])

    def _was_refused(self, could: list[int], key: str) -> bool:
        """Mirrors that had no such object a minute ago are not asked for it yet. The first store is asked each time."""
        return all(number and self.now_s < self.back_s.get((number, key), 0.0) + REFUSED_S for number in could)

    @invariant()
    def numbers_are_of_these_places(self) -> None:
        if hasattr(self, "reports"):
            assert set(self.reports.counts.numbers()) <= {"url", "mirror1", "mirror2"}


TestRandomMirrors = pytest.mark.promise("S685")(RandomMirrors.TestCase)
TestRandomMirrors.settings = settings(max_examples=drawn(60), stateful_step_count=30, deadline=None)
