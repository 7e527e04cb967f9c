"""The generators of the tables in the docs read what a person wrote. `make lint` checks that the tables are current."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture.source_tree import REPOSITORY
from tools import chart_values, lock_table, promise_table
from tools.chart_values import Value
from tools.generated_tables import with_section
from tools.lock_table import LockField

LOCKS = '''
class Cache:
    """Bytes by name.

    ``_lock`` guards ``_used`` and ``_names``; it is not held across disk. Names are short. ``_evicting`` is held by
    the one thread that evicts.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Guards: _jobs. While held: no network.
        self._jobs_lock: threading.Lock = threading.RLock()
        self._locks = [threading.Lock() for _ in range(64)]  # guards the file of a digest
        self._last = threading.Lock()
        """Guards ``_last_error``. Not held during a call."""
'''


def test_what_is_said_of_a_lock_in_a_docstring_a_comment_or_a_string_is_in_its_row() -> None:
    assert list(lock_table.locks(LOCKS, "cache.py")) == [
        LockField("Cache", "_lock", "`_used` and `_names`", "not held across disk"),
        LockField("Cache", "_evicting", "", "held by the one thread that evicts"),
        LockField("Cache", "_jobs_lock", "`_jobs`", "no network"),
        LockField("Cache", "_locks", "the file of a digest", ""),
        LockField("Cache", "_last", "`_last_error`", "not held during a call"),
    ]


def test_a_lock_about_which_nothing_is_said_is_named() -> None:
    source = "class Cache:\n    def __init__(self):\n        self._lock = threading.Lock()\n"
    with pytest.raises(ValueError, match=r"cache\.py:3: say at Cache\._lock which fields it guards"):
        list(lock_table.locks(source, "cache.py"))


def promised(tmp_path: Path, page: str, test: str) -> Path:
    for name, text in (("docs/semantics.md", page), ("tests/test_one.py", test)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_a_promise_is_listed_with_its_tests(tmp_path: Path) -> None:
    test = 'pytestmark = pytest.mark.promise("S2")\n\n@pytest.mark.promise("S1", "S2")\ndef test_it(): ...\n'
    table = promise_table.table(promised(tmp_path, "- **S1** One.\n- **S2** Two.\n", test))
    assert table.splitlines()[2:] == [
        "| S1 | `tests/test_one.py::test_it` |",
        "| S2 | `tests/test_one.py`<br>`tests/test_one.py::test_it` |",
    ]


@pytest.mark.parametrize(
    ("page", "test", "message"),
    [
        ("- **S1** One.\n", "", "no test holds S1"),
        ("", '@pytest.mark.promise("S1")\ndef test_it(): ...\n', r"tests/test_one\.py::test_it: .* has no S1"),
        ("- **S1** One.\n- **S1** Two.\n", "", "S1 is there 2 times"),
    ],
)
def test_a_promise_without_a_test_and_a_test_without_a_promise_are_named(
    tmp_path: Path, page: str, test: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        promise_table.table(promised(tmp_path, page, test))


def test_only_the_lines_between_the_markers_are_replaced() -> None:
    page = "before\n<!-- generated: locks (make generated) -->\nold\n<!-- end of locks -->\nafter\n"
    new = "before\n<!-- generated: locks (make generated) -->\nnew\n<!-- end of locks -->\nafter\n"
    assert with_section(page, "locks", "new\n") == new
    with pytest.raises(ValueError, match="needs one pair of the lines"):
        with_section("no markers", "locks", "new\n")


VALUES = """\
# About the file.

image:
  # Its name.
  name: hayloft
  # Its tag,
  # or empty.
  tag: ""
# What a pod
# may use.
resources:
  limits: {memory: 1Gi}
labels:
  # Which.
  wanted: [a-label-with-a-long-name, another-label-with-a-long-name]
"""


def test_a_value_is_documented_by_the_comment_above_it() -> None:
    assert list(chart_values.values(VALUES)) == [
        Value("image.name", "hayloft", "Its name."),
        Value("image.tag", "", "Its tag, or empty."),
        Value("resources", {"limits": {"memory": "1Gi"}}, "What a pod may use."),
        Value("labels.wanted", ["a-label-with-a-long-name", "another-label-with-a-long-name"], "Which."),
    ]


def test_the_table_of_values_has_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "deploy/chart/values.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(VALUES)
    assert chart_values.table(tmp_path).splitlines()[2:] == [
        "| `image.name` | `hayloft` | Its name. |",
        "| `image.tag` | empty | Its tag, or empty. |",
        '| `resources` | `{"limits": {"memory": "1Gi"}}` | What a pod may use. |',
        "| `labels.wanted` | see `values.yaml` | Which. |",
    ]


@pytest.mark.parametrize("line", ["port: 1\n", "names: []\n", "all: {}\n"])
def test_a_value_about_which_nothing_is_said_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=rf"values\.yaml:3: write above group\.{line.split(':')[0]} what it means"):
        list(chart_values.values(f"group:\n\n  {line}"))


def _schema_and_values(schema: Any, values: Any, name: str = "") -> Iterator[str]:
    """Names that one of them has and the other has not, and objects that take any name."""
    if schema.get("additionalProperties") is not False or schema.get("$ref"):
        return
    present = values if isinstance(values, dict) else {}
    yield from (f"{name}{key}" for key in schema["properties"].keys() ^ present.keys())
    for key, inner in present.items():
        yield from _schema_and_values(schema["properties"].get(key, {}), inner, f"{name}{key}.")


def test_the_schema_of_the_chart_has_the_values_of_the_chart_and_no_others() -> None:
    chart = REPOSITORY / chart_values.CHART
    schema = json.loads((chart / "values.schema.json").read_text())
    assert list(_schema_and_values(schema, yaml.safe_load((chart / "values.yaml").read_text()))) == ["global"]
