"""Random attributes and Secrets are parsed or refused by name, and nothing secret is in the refusal; random listings
and files of the driver are read or refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.manifest import Manifest
from csi_driver.csi.parameter_templates import expand_templates
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.model.dataset import Dataset, DatasetUrl
from csi_driver.model.errors import HayloftError, ManifestInvalid, RegistryUnavailable
from csi_driver.model.snapshot import ObjectPage
from csi_driver.model.tenant import Tenant
from csi_driver.objects.credentials import parse_secret
from csi_driver.objects.s3.listing import parse_listing
from csi_driver.objects.store_location import StoreLocation
from csi_driver.rpc.statuses import message_of, status_of
from csi_driver.settings import PolicySettings, RegistrySettings
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.registry import open_registry
from tests.support.random_volumes import EXAMPLES, MARK, contexts, secrets

pytestmark = pytest.mark.promise("S180")

often = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

POLICIES = (
    PolicySettings(),
    PolicySettings(allowed_endpoints=("https://s3.example.com",)),
    PolicySettings(trusted_namespaces=("*",), allow_file_urls=True),
)


@often
@given(
    contexts("http://127.0.0.1:9"),
    st.sampled_from(POLICIES),
    st.builds(Tenant, st.sampled_from(["", "a"]), st.booleans()),
)
def test_attributes_are_parsed_or_refused_without_what_may_be_secret(
    attributes: Mapping[str, str], policy: PolicySettings, tenant: Tenant
) -> None:
    parsed, refusal = _tried(lambda: VolumeParameters.parse(expand_templates(attributes), policy, tenant))
    if refusal is None:
        assert VolumeParameters.parse(parsed.to_context()).to_context() == parsed.to_context()
    else:
        _assert_refused(refusal)


def _tried(work: Callable[[], Any]) -> tuple[Any, HayloftError | None]:
    """The result, or the refusal; any other error fails the test."""
    try:
        return work(), None
    except HayloftError as error:
        return None, error


def _assert_refused(error: HayloftError) -> None:
    assert status_of(error).name in {"INVALID_ARGUMENT", "PERMISSION_DENIED", "OUT_OF_RANGE"}, error
    assert MARK not in message_of(error)


@often
@given(secrets())
def test_a_secret_is_parsed_or_refused_without_its_values(secret: Mapping[str, str]) -> None:
    credentials, refusal = _tried(lambda: parse_secret(secret))
    if refusal is None:
        assert MARK not in repr(credentials)
    else:
        _assert_refused(refusal)


# -- what a store lists ------------------------------------------------------------------------------------------------

KEYS = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["", "/", "a", "a/", "a/b", "a//b", "../x", "a/../b", "\0", "a" * 300, "é", "\udcff", "a\nb", "x/" * 300]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 2**63 - 1, -1])
OBJECTS = st.tuples(KEYS, NUMBERS, st.none() | st.text(max_size=8), NUMBERS)


@often
@given(pages=st.lists(st.lists(OBJECTS, max_size=8), max_size=3))
def test_whatever_a_store_lists_becomes_a_tree_or_is_refused(
    pages: list[list[tuple[str, int, str | None, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.getbasetemp() / "random.arrow"
    columns = [
        ObjectPage(*map(list, zip(*page, strict=True))) if page else ObjectPage([], [], [], []) for page in pages
    ]
    with contextlib.suppress(HayloftError):
        tree = build_manifest(columns, Dataset(DatasetUrl.parse("s3://bucket")), target).tree
        for node, _ in _nodes(tree, 1):
            assert b"/" not in tree.path(node).rpartition(b"/")[2]
    assert target.exists() or not list(target.parent.glob("random.arrow*"))
    target.unlink(missing_ok=True)


def _nodes(tree: object, node: int) -> list[tuple[int, bool]]:
    found = []
    for _, child, is_directory, _ in tree.children(node, 0):  # type: ignore[attr-defined]
        found.append((child, is_directory))
        if is_directory:
            found += _nodes(tree, child)
    return found


_PAGE = (
    b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size>'
    b"<ETag>&quot;e&quot;</ETag><LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>"
)


def _changed(original: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a piece replaced by others."""

    def change(start: int, length: int, piece: bytes) -> bytes:
        return original[:start] + piece + original[start + length :]

    return st.builds(change, st.integers(0, len(original)), st.integers(0, 40), st.binary(max_size=40))


@often
@given(_changed(_PAGE) | st.binary(max_size=200))
def test_a_listing_is_parsed_or_is_an_error_of_the_store(body: bytes) -> None:
    with contextlib.suppress(HayloftError):
        parse_listing(body, StoreLocation("http://127.0.0.1:9", "bucket"))


# -- files of the driver -----------------------------------------------------------------------------------------------


def _manifest(path: Path) -> bytes:
    page = ObjectPage(["a/b", "a/c", "d"], [1, 2, 3], ["e", None, "f"], [1, 2, 3])
    build_manifest([page], Dataset(DatasetUrl.parse("s3://bucket")), path, created_ns=1)
    return path.read_bytes()


@often
@given(data=st.data())
def test_a_changed_manifest_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.arrow"
    original = _manifest(path)
    changed = data.draw(_changed(original) | st.binary(max_size=100))
    path.write_bytes(changed)
    if changed == original:
        assert Manifest.open(path).file_count == 3
    else:
        with pytest.raises((ManifestInvalid, ValueError)):
            Manifest.open(path)


@often
@given(data=st.data())
def test_a_changed_mount_record_is_left_out(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    records = MountRecords(tmp_path_factory.getbasetemp() / "state")
    record = MountRecord("m-1", "volume", "/mnt", {"url": "s3://bucket/"}, "snapshot")
    records.save(record)
    path = records.manifest_path("m-1").with_suffix(".json")
    path.write_bytes(data.draw(_changed(path.read_bytes()) | st.binary(max_size=100)))
    assert list(records.load()) in ([], [record])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("format", "volume_id", "name", "dynamic", "snapshot_id", "total_bytes", "file_count"), JSON),
        **dict.fromkeys(("required_bytes", "created", "namespace"), JSON),
        "parameters": contexts("http://127.0.0.1:9") | JSON,
    },
)


@often
@given(content=RECORDS.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=100))
def test_a_record_of_the_registry_is_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    location = tmp_path_factory.getbasetemp() / "registry"
    registry = open_registry(RegistrySettings(location=str(location)))
    (location / "volumes").mkdir(exist_ok=True)
    (location / "volumes" / "volume-1.json").write_bytes(content)
    with contextlib.suppress(RegistryUnavailable):
        record = registry.get("volume-1")
        assert record is not None
        record.parsed()
