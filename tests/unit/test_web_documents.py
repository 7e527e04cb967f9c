"""What the web page gets: the node is looked at as often as one page asks, and counting goes in bounded steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.errors import InvalidParameter
from csi_driver.model.read_counts import ReadNumbers
from csi_driver.volumes.node_operations import Counted, DirectoryPage, Entry, FileRows, NodeActivity, NodeStatus
from csi_driver.wiring import web_documents
from csi_driver.wiring.reader_rates import Sample
from csi_driver.wiring.web_documents import NodeView
from tests.support.data_planes import REPORT

pytestmark = pytest.mark.promise("S651")

STATUS = NodeStatus(REPORT, (), (), "/cache", "xfs", "", 10.0, 100, 6, False, True)


NO_ROWS: list[dict[str, str]] = [
    *({}, {"start": "-1", "stop": "3"}, {"start": "0", "stop": "x"}, {"start": "0", "stop": "9" * 30}),
    *({"start": "5", "stop": "9", "cell": "0"}, {"start": "5", "stop": "9", "origin": "6"}),
    {"start": "²", "stop": "3"},
]


class Operations:
    """A node whose counters grow with each look. Every file has 3 bytes, and every other one is cached."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.looks = 0
        self.counted: list[FileRows] = []
        self.process_id = 77
        self.names = (b"plain", b"\xff<b>", b"a/b"[:1])

    def clock(self) -> float:
        return self.now_s

    def status(self) -> NodeStatus:
        self.looks += 1
        report = replace(REPORT, origin_bytes=1000 * self.looks, process_id=self.process_id)
        return replace(STATUS, report=report)

    def activity(self) -> NodeActivity:
        return NodeActivity(REPORT)

    def reads(self) -> ReadNumbers:
        return ReadNumbers(memory_bytes=10 * self.looks, passthrough_bytes=500 * self.looks)

    def count_cached(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Counted:
        self.counted.append(rows)
        self.now_s += 0.01
        number = rows.stop - rows.start
        complete = sum(row % 2 for row in range(rows.start, rows.stop))
        return Counted(3 * complete, complete, rows.stop, 3 * number)

    def list_directory(self, volume_id: str, path: bytes, cookie: int = 0) -> DirectoryPage:
        entries = tuple(Entry(name, True, 3, None, FileRows(at, at + 1)) for at, name in enumerate(self.names))
        return DirectoryPage("snapshot", entries, 0, FileRows(0, 3), True)


@pytest.fixture
def node() -> Operations:
    return Operations()


def view_of(node: Operations) -> NodeView:
    return NodeView(cast(Any, node), node.reads, node.clock, node.clock)


@pytest.mark.promise("S655")
def test_pages_that_are_open_at_once_cost_one_look(node: Operations) -> None:
    view = view_of(node)
    first = view.node({})
    assert first["throughput"] is None
    for _ in range(20):
        assert view.node({}) is first
    node.now_s += 2.0
    second = view.node({})
    assert node.looks == 2
    assert second["throughput"] == {
        "span_s": 2.0,
        "passed_through": 250.0,
        "served": 5.0,
        "fetched": 500.0,
        "requests": 0.0,
    }
    assert second["status"]["rates"]["fetched_bytes"] == 500.0


@pytest.mark.promise("S655")
def test_a_page_that_was_away_begins_anew(node: Operations) -> None:
    view = view_of(node)
    view.node({})
    node.now_s += web_documents.FORGET_S + 1
    assert view.node({})["throughput"] is None
    node.now_s += 1
    assert view.node({})["throughput"] is not None


@pytest.mark.promise("S655")
def test_readers_are_looked_for_the_more_rarely_the_longer_it_takes(
    node: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def slow(activity: NodeActivity) -> Any:
        looks.append(node.now_s)
        node.now_s += 0.5
        return Sample(node.now_s, activity, {})

    monkeypatch.setattr(Sample, "of", slow)
    view = view_of(node)
    for _ in range(60):
        view.node({})
        node.now_s += 1.0
    gaps = [after - before for before, after in pairwise(looks)]
    assert min(gaps) >= 0.5 / web_documents.READERS_SHARE
    assert view.node({})["readers"] is not None, "rates over that longer time"


@given(
    files=st.integers(1, 5000),
    cell=st.integers(1, 3000),
)
def test_steps_count_each_file_once_and_in_its_cell(files: int, cell: int) -> None:
    node = Operations()
    view = view_of(node)
    start, covered, cached = 0, [], 0
    while start < files:
        query = {"volume": "v", "snapshot": "s", "start": str(start), "stop": str(files), "origin": "0"}
        step = view.count({**query, "cell": str(cell)})
        for first, end, total, part_cached, complete in step["parts"]:
            assert first // cell == (end - 1) // cell
            assert total == 3 * (end - first)
            assert part_cached == 3 * complete
            covered.append((first, end))
            cached += part_cached
        assert step["next_row"] > start
        start = step["next_row"]
    assert [end for _, end in covered[:-1]] == [first for first, _ in covered[1:]]
    assert (covered[0][0], covered[-1][1], cached) == (0, files, 3 * (files // 2))
    assert max(rows.stop - rows.start for rows in node.counted) <= web_documents.COUNT_FILES


@pytest.mark.promise("S655")
def test_a_step_ends_soon(node: Operations) -> None:
    step = view_of(node).count({"start": "0", "stop": "1000000", "cell": "1"})
    assert len(step["parts"]) == round(web_documents.COUNT_S / 0.01)


@pytest.mark.parametrize("query", NO_ROWS)
def test_rows_that_are_no_rows_are_refused(node: Operations, query: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter):
        view_of(node).count(query)
    assert node.counted == []


def test_a_name_is_shown_as_text_and_asked_for_as_bytes(node: Operations) -> None:
    listed = view_of(node).directory({"volume": "v", "path": "d%FF"})
    assert listed["shown"] == "d\\xff"
    shown = [(one["shown"], unquote_to_bytes(one["path"])) for one in listed["entries"]]
    assert shown == [("plain", b"d\xff/plain"), ("\\xff<b>", b"d\xff/\xff<b>"), ("a", b"d\xff/a")]
