"""The parameter ``inventory``: what it may name, and whose rules hold for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.model.errors import EndpointNotAllowed, InvalidParameter, UnknownParameter
from csi_driver.model.tenant import Tenant
from csi_driver.settings import PolicySettings, RegistrySettings
from csi_driver.volumes.admission import admit
from csi_driver.volumes.parameters import VolumeParameters

URL = {"url": "s3://bucket/train"}
SECRETS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"}


def test_the_parameter_survives_a_round_trip_and_is_part_of_what_is_shown() -> None:
    parameters = VolumeParameters.parse({**URL, "inventory": "s3a://lists/bucket/daily/"})
    assert parameters.to_context()["inventory"] == "s3://lists/bucket/daily/"
    assert VolumeParameters.parse(parameters.to_context()) == parameters
    assert not parameters.shows_same_as(VolumeParameters.parse(URL))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"inventory": "gs://lists/all.csv"}, r"allowed: a s3:// URL, as url\. The inventory is read by the volume's"),
        ({"inventory": "s3://lists/all.txt"}, "allowed: the URL of a manifest.json of S3 Inventory"),
        ({"inventory": "s3://user:pw@lists/all.csv"}, "without credentials"),
        ({"inventory": "s3://lists/all?sig=SECRET.csv"}, r"'s3://lists/all\?…' is not allowed.*without a query"),
        ({"url": "https://host/data/", "inventory": "https://host/all.csv"}, "allowed: the URL of a manifest.json"),
        ({"url": "https://host/data/", "inventory": "s3://b/all.csv"}, r"left out for http\(s\) URLs.*by manifest"),
    ],
)
def test_what_is_refused(given: dict[str, str], expected: str) -> None:
    with pytest.raises(InvalidParameter, match=expected):
        VolumeParameters.parse({**URL, **given})


def test_a_similar_name_is_answered_with_this_one() -> None:
    with pytest.raises(UnknownParameter, match="inventory"):
        VolumeParameters.parse({**URL, "s3-inventory": "s3://lists/all.csv"})


@pytest.mark.promise("S635")
def test_the_operators_rules_hold_for_the_folder_of_the_inventory() -> None:
    policy = PolicySettings(allowed_datasets=("team=s3://bucket/train", "team=s3://lists/team/"))
    team = Tenant("team", inline=True)
    for allowed in ("s3://lists/team/daily/2026-11-28T01-00Z/manifest.json", "s3://lists/team/all.csv"):
        VolumeParameters.parse({**URL, "inventory": allowed}, policy, team)
    # A manifest names files in the folder above its own.
    for place in ("s3://lists/other/daily/", "s3://lists/team/manifest.json", "s3://lists/team/../other/daily/"):
        with pytest.raises(EndpointNotAllowed, match=r"^inventory: s3:.* is not allowed in namespace 'team'"):
            VolumeParameters.parse({**URL, "inventory": place}, policy, team)
    with pytest.raises(EndpointNotAllowed, match="reads files of the node"):
        VolumeParameters.parse({"url": "file:///data", "inventory": "file:///all.csv"}, PolicySettings())


@pytest.mark.promise("S635")
def test_an_inventory_is_not_looked_for_in_the_drivers_own_storage() -> None:
    policy = PolicySettings(registry=RegistrySettings(location="s3://hayloft/registry"))
    parameters = VolumeParameters.parse({**URL, "inventory": "s3://hayloft/registry/manifests/all.csv"}, policy)
    with pytest.raises(EndpointNotAllowed, match=r"^inventory: 's3://hayloft/.*overlaps the registry of this driver"):
        admit(parameters, SECRETS, policy)


@pytest.mark.promise("S635")
def test_an_inventory_in_a_directory_of_the_driver_is_refused_by_its_own_name(tmp_path: Path) -> None:
    policy = PolicySettings(own_directories=(tmp_path / "cache",), allow_file_urls=True)
    given = {"url": f"file://{tmp_path}/data", "inventory": f"file://{tmp_path}/cache/lists/all.csv"}
    with pytest.raises(EndpointNotAllowed, match=r"^inventory: .*overlaps a directory of this driver"):
        admit(VolumeParameters.parse(given, policy), {}, policy)
