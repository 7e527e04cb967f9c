"""The protocol's structs against linux/fuse.h, INIT with kernels old and new, and any bytes at all."""

from __future__ import annotations

import errno
import logging
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.fuse import negotiation
from csi_driver.fuse import protocol as p
from csi_driver.fuse.request_timeout import RequestTimeouts
from csi_driver.model.chunk import CHUNK_BYTES
from tests.support.examples import examples
from tests.support.fake_kernel import FakeKernel
from tests.support.local_filesystem import LocalFilesystem

_ALL_FLAGS = (1 << 43) - 1


@pytest.mark.parametrize(
    ("layout", "size_bytes"),
    [
        (p.REQUEST, 36),  # the padding that ends the header is not read
        (p.REPLY, 16),
        (p.INIT_OUT, 64),
        (p.ATTR_OUT, 104),
        (p.ENTRY_OUT, 128),
        (p.READ_IN, 36),
        (p.STATFS_OUT, 80),
        (p.DIRENT, 24),
        (p.OPEN_REPLY, 32),
        (p.LSEEK_IN, 24),
        (p.INVAL_INODE, 40),
        (p.RETRIEVE, 48),
    ],
)
def test_structs_have_the_sizes_of_the_kernel_header(layout: struct.Struct, size_bytes: int) -> None:
    assert layout.size == size_bytes


def test_opcodes_are_those_of_the_kernel_header() -> None:
    assert (p.LOOKUP, p.OPEN, p.RELEASE, p.FSYNC, p.GETXATTR, p.INIT, p.RELEASEDIR) == (1, 14, 18, 20, 22, 26, 29)
    assert (p.FSYNCDIR, p.ACCESS, p.INTERRUPT, p.IOCTL, p.POLL, p.BATCH_FORGET, p.LSEEK) == (30, 34, 36, 39, 40, 42, 46)
    assert (p.COPY_FILE_RANGE, p.SETUPMAPPING, p.TMPFILE, p.STATX, p.COPY_FILE_RANGE_64) == (47, 48, 51, 52, 53)


def _init_request(major: int, minor: int, flags: int, *, extended: bool) -> bytes:
    body = struct.pack("<IIII", major, minor, 1 << 17, flags & 0xFFFFFFFF)
    if extended:
        body += struct.pack("<I44x", flags >> 32)
    return struct.pack("<IIQQIIIHH", 40 + len(body), p.INIT, 2, 0, 0, 0, 0, 0, 0) + body


def _agreed(
    minor: int, flags: int, *, extended: bool = True, passthrough: bool = True
) -> negotiation.Negotiated | None:
    request = _init_request(7, minor, flags, extended=extended)
    return negotiation.agree(negotiation.parse_offer(request, len(request)), passthrough)


def test_a_new_kernel_gets_passthrough_and_our_minor_version() -> None:
    agreed = _agreed(99, _ALL_FLAGS)
    assert agreed is not None
    assert agreed.passthrough
    assert agreed.minor == p.MINOR_MAXIMUM
    reply = negotiation.init_reply(agreed)
    assert len(reply) == 64
    flags, flags2, depth = struct.unpack_from("<I", reply, 12)[0], *struct.unpack_from("<II", reply, 32)
    assert flags & p.INIT_EXT
    assert flags2 << 32 & p.INIT_PASSTHROUGH
    assert depth == 1


@pytest.mark.promise("S682")
@pytest.mark.parametrize(("page_bytes", "pages"), [(4096, 256), (16384, 64), (65536, 16)])
def test_a_read_is_at_most_a_chunk_whatever_the_size_of_a_page(page_bytes: int, pages: int) -> None:
    agreed = _agreed(45, _ALL_FLAGS)
    assert agreed is not None
    assert struct.unpack_from("<H", negotiation.init_reply(agreed, page_bytes), 28) == (pages,)
    assert pages * page_bytes == CHUNK_BYTES


def test_a_kernel_without_extended_flags_is_sent_none() -> None:
    agreed = _agreed(31, 0xFFFFFFFF & ~p.INIT_EXT, extended=False)
    assert agreed is not None
    assert not agreed.passthrough
    assert agreed.flags < 1 << 32
    assert agreed.minor == 31


def test_flags_that_turn_passthrough_off_are_never_taken() -> None:
    agreed = _agreed(45, _ALL_FLAGS)
    assert agreed is not None
    writeback_cache, splice = 1 << 16, 0b111 << 7
    assert not agreed.flags & (writeback_cache | splice)


def test_passthrough_is_not_taken_when_it_is_not_wanted() -> None:
    agreed = _agreed(45, _ALL_FLAGS, passthrough=False)
    assert agreed is not None
    assert not agreed.passthrough


def test_a_kernel_before_7_31_is_refused() -> None:
    assert _agreed(30, 0) is None


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    (tmp_path / "data").mkdir()
    kernel = FakeKernel(LocalFilesystem(tmp_path / "data"), tmp_path / "opens")
    yield kernel
    kernel.close()


def test_an_old_kernel_gets_eproto_and_the_session_reports_why(kernel: FakeKernel) -> None:
    kernel.send_bytes(_init_request(7, 12, 0, extended=False))
    (reply,) = kernel.replies()
    assert reply.error == errno.EPROTO
    assert "Linux 5.4" in kernel.session._refusal


def test_a_kernel_of_a_later_major_version_is_sent_ours(kernel: FakeKernel) -> None:
    kernel.send_bytes(_init_request(8, 0, _ALL_FLAGS, extended=True))
    (reply,) = kernel.replies()
    assert reply.error == 0
    assert struct.unpack_from("<I", reply.body)[0] == 7


def test_the_result_of_init_is_recorded_before_the_answer(kernel: FakeKernel) -> None:
    kernel.send_bytes(_init_request(7, 45, _ALL_FLAGS, extended=True))
    assert kernel.open_table.state.minor == 45
    assert kernel.open_table.state.flags & p.INIT_PASSTHROUGH


# -- any bytes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FakeKernel]:
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "data")
        (data / "sub").mkdir(parents=True)
        (data / "a").write_bytes(b"0123456789")
        kernel = FakeKernel(LocalFilesystem(data), Path(directory, "opens"))
        logging.disable(logging.CRITICAL)
        yield kernel
        logging.disable(logging.NOTSET)
        kernel.close()


@examples(400)
@given(request=st.binary(max_size=300))
def test_any_bytes_get_at_most_one_reply_and_never_an_exception(fuzzed: FakeKernel, request: bytes) -> None:
    fuzzed.send_bytes(request)
    replies = fuzzed.replies()
    assert len(replies) <= 1
    if len(request) >= p.HEADER_BYTES:
        _, opcode, unique = struct.unpack_from("<IIQ", request)
        assert [reply.unique for reply in replies] == ([] if opcode in p.WITHOUT_REPLY else [unique])


@examples(800)
@given(
    opcode=st.integers(0, p.OPCODE_COUNT + 3),
    node=st.sampled_from([0, 1, 2, 3, 4, (1 << 64) - 1]),
    body=st.one_of(
        st.binary(max_size=120),
        st.binary(max_size=30).map(lambda name: name + b"\0"),
        st.tuples(st.integers(0, 9), st.integers(0, 1 << 64), st.integers(0, 4096)).map(
            lambda v: struct.pack("<QQIIQII", v[0], v[1] & (1 << 64) - 1, v[2], 0, 0, 0, 0)
        ),
    ),
)
def test_any_body_for_any_opcode_is_answered_exactly_once(
    fuzzed: FakeKernel, opcode: int, node: int, body: bytes
) -> None:
    unique = fuzzed.send(opcode, body, node=node)
    replies = fuzzed.replies()
    assert [reply.unique for reply in replies] == ([] if opcode in p.WITHOUT_REPLY else [unique])
    if opcode in p.WRITING:
        assert replies[0].error == errno.EROFS


@pytest.mark.promise("S225")
def test_a_limit_of_the_time_of_requests_is_named_only_in_the_place_of_a_default() -> None:
    offer = negotiation.Offer(7, 44, _ALL_FLAGS)
    without = negotiation.agree(offer, passthrough=True)
    assert without is not None
    assert not without.flags & p.INIT_REQUEST_TIMEOUT
    named = negotiation.agree(offer, True, RequestTimeouts(default_s=60).named_s)
    assert named is not None
    assert named.flags & p.INIT_REQUEST_TIMEOUT
    assert p.INIT_OUT.unpack(negotiation.init_reply(named))[-1] == 0xFFFF
    older = negotiation.agree(negotiation.Offer(7, 40, _ALL_FLAGS & ~p.INIT_REQUEST_TIMEOUT), True, 0xFFFF)
    assert older is not None
    assert p.INIT_OUT.unpack(negotiation.init_reply(older))[-1] == 0


@pytest.mark.promise("S225")
@pytest.mark.parametrize(
    ("most_s", "needed_s", "warns"),
    [
        *((0, 120, False), (0, None, False), (300, 120, False), (121, 120, False), (120, 120, True), (30, 120, True)),
        *((1, 14, False), (1, 20, True), (86_400, None, True)),
    ],
)
def test_a_limit_below_the_deadline_is_warned_of(
    tmp_path: Path, most_s: int, needed_s: float | None, warns: bool
) -> None:
    (tmp_path / "default_request_timeout").write_text("7\n")
    (tmp_path / "max_request_timeout").write_text(f"{most_s}\n")
    timeouts = RequestTimeouts.read(tmp_path)
    assert timeouts == RequestTimeouts(7, most_s)
    assert ("fs.fuse.max_request_timeout" in timeouts.warning(needed_s)) is warns


def test_a_kernel_without_limits_has_none(tmp_path: Path) -> None:
    assert RequestTimeouts.read(tmp_path) == RequestTimeouts(0, 0)
