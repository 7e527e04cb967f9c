"""The controller service, with requests as external-provisioner sends them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_driver.csi.parameter_templates import expand_templates
from csi_driver.model.errors import BucketNotFound, InvalidParameter, RegistryUnavailable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.settings import PolicySettings
from tests.support.csi_calls import (
    DATASET_BYTES,
    URL,
    CsiClient,
    Mode,
    VolumesInMemory,
    block_capability,
    count_parses,
    mount_capability,
    refused,
    serving,
)
from tests.support.data_planes import InMemoryDataPlane

Code = grpc.StatusCode
METADATA = {
    "csi.storage.k8s.io/pvc/name": "images",
    "csi.storage.k8s.io/pvc/namespace": "team-a",
    "csi.storage.k8s.io/pv/name": "pvc-123",
}


@pytest.fixture
def volumes() -> VolumesInMemory:
    return VolumesInMemory()


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hayloft-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def driver(home: Path, volumes: VolumesInMemory) -> Iterator[CsiClient]:
    with serving(home / "s", InMemoryDataPlane(), volumes) as client:
        yield client


def test_the_context_is_the_canonical_parameters_and_no_secret(driver: CsiClient, volumes: VolumesInMemory) -> None:
    parameters = {"url": "s3://bucket/train", "uid": "0", "fileMode": "440", **METADATA}
    volume = driver.create("v", parameters=parameters, secrets={"key_id": "k", "access_key": "hidden"})
    assert volume.volume_context == {"url": URL, "fileMode": "0440"}
    assert volumes.listings[0][1] == {"key_id": "k", "access_key": "hidden"}
    assert "hidden" not in str(volumes.records)


def test_templates_are_replaced_by_the_names_of_the_claim(driver: CsiClient) -> None:
    url = "s3://data/${pvc.namespace}/${pvc.name}/${pv.name}/${pvc.metadata.name}/"
    volume = driver.create("v", parameters={"url": url, **METADATA})
    assert volume.volume_context["url"] == "s3://data/team-a/images/pvc-123/images/"


def test_an_unknown_template_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(InvalidParameter, match=r"url: '\$\{pvc.labels\}'.*\$\{pvc.namespace\}"):
        expand_templates({"url": "s3://b/${pvc.labels}", **METADATA})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("endpoint", "https://${pvc.name}"),
        ("endpoint", "http://minio.${pv.name}:9000"),
        ("url", "HTTPS://${pvc.metadata.name}/data"),
        ("url", "ftp://files.${pvc.name}/data"),
    ],
)
def test_the_author_of_a_claim_does_not_choose_the_host_by_its_name(key: str, value: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"{key}: .*pvc\.namespace"):
        expand_templates({"url": "s3://b/x", key: value, **METADATA})
    by_namespace = {key: "http://minio.${pvc.namespace}.svc:9000/${pvc.name}", **METADATA}
    namespace, name = (METADATA[f"csi.storage.k8s.io/pvc/{part}"] for part in ("namespace", "name"))
    assert expand_templates(by_namespace)[key] == f"http://minio.{namespace}.svc:9000/{name}"


def test_a_template_without_its_name_says_which_flag_the_provisioner_needs() -> None:
    with pytest.raises(InvalidParameter, match="--extra-create-metadata"):
        expand_templates({"url": "s3://b/${pvc.name}"})


def test_unknown_parameters_are_named_and_nothing_is_created(driver: CsiClient, volumes: VolumesInMemory) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.create("v", parameters={"url": URL, "bucketName": "x"})
    assert "bucketName" in found[0].message
    assert volumes.records == {}
    assert volumes.listings == []


def test_a_missing_url_is_named(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.create("v", parameters={})
    assert found[0].message.startswith("url: is required")


def test_a_dataset_over_the_limit_is_out_of_range_and_not_recorded(driver: CsiClient, volumes: VolumesInMemory) -> None:
    with refused(Code.OUT_OF_RANGE) as found:
        driver.create("v", capacity_range=csi_pb2.CapacityRange(limit_bytes=DATASET_BYTES - 1))
    assert str(DATASET_BYTES) in found[0].message
    assert volumes.records == {}
    driver.create("v", capacity_range=csi_pb2.CapacityRange(limit_bytes=DATASET_BYTES))


def test_an_impossible_range_is_refused(driver: CsiClient) -> None:
    with refused(Code.OUT_OF_RANGE):
        driver.create("v", capacity_range=csi_pb2.CapacityRange(required_bytes=2, limit_bytes=1))
    with refused(Code.INVALID_ARGUMENT):
        driver.create("v", capacity_range=csi_pb2.CapacityRange(required_bytes=-1))


def test_the_same_name_with_other_parameters_already_exists(driver: CsiClient) -> None:
    driver.create("v", parameters={"url": URL})
    with refused(Code.ALREADY_EXISTS):
        driver.create("v", parameters={"url": URL, "uid": "1000"})


def test_the_same_name_with_equal_parameters_in_another_notation_is_the_same_volume(driver: CsiClient) -> None:
    first = driver.create("v", parameters={"url": "s3://bucket/train"})
    assert driver.create("v", parameters={"url": "s3://bucket/train/", "uid": "0", **METADATA}) == first


@pytest.mark.parametrize("mode", [Mode.MULTI_NODE_MULTI_WRITER, Mode.MULTI_NODE_SINGLE_WRITER])
def test_a_volume_for_several_writers_is_refused(driver: CsiClient, mode: int) -> None:
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.create("v", volume_capabilities=[mount_capability(), mount_capability(mode)])
    assert found[0].class_name == "ReadOnlyVolume"


def test_a_volume_without_access_type_or_mode_is_refused(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.create("v", volume_capabilities=[block_capability()])
    with refused(Code.INVALID_ARGUMENT):
        driver.create("v", volume_capabilities=[mount_capability(Mode.UNKNOWN)])
    with refused(Code.INVALID_ARGUMENT):
        driver.create("v", volume_capabilities=[csi_pb2.VolumeCapability()])


@pytest.mark.parametrize(
    ("failure", "code"),
    [(BucketNotFound("s3://b: no such bucket"), Code.NOT_FOUND), (RegistryUnavailable("down"), Code.UNAVAILABLE)],
)
def test_a_failed_listing_creates_no_volume(
    driver: CsiClient, volumes: VolumesInMemory, failure: Exception, code: grpc.StatusCode
) -> None:
    volumes.failure = failure
    with refused(code):
        driver.create("v")
    assert volumes.records == {}


def test_validate_does_not_confirm_writers_and_says_why(driver: CsiClient) -> None:
    volume = driver.create("v")
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id, volume_capabilities=[mount_capability(Mode.MULTI_NODE_MULTI_WRITER)]
    )
    answer = driver.controller.ValidateVolumeCapabilities(request)
    assert not answer.HasField("confirmed")
    assert "MULTI_NODE_MULTI_WRITER" in answer.message


def test_validate_compares_context_and_parameters(driver: CsiClient) -> None:
    volume = driver.create("v")

    def validate(**more: dict[str, str]) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id, volume_capabilities=[mount_capability()], **more
        )
        return driver.controller.ValidateVolumeCapabilities(request)

    identity = {"storage.kubernetes.io/csiProvisionerIdentity": "1-2-csi.hayloft.dev"}
    assert validate(volume_context={**volume.volume_context, **identity}).HasField("confirmed")
    assert validate(parameters={"url": URL}).HasField("confirmed")
    assert "volume_context" in validate(volume_context={"url": "s3://other/"}).message
    assert "parameters" in validate(parameters={"url": URL, "gid": "5"}).message
    assert "uurl" in validate(parameters={"uurl": URL}).message


def test_a_call_parses_its_parameters_once_and_those_of_the_record_once(
    driver: CsiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = count_parses(monkeypatch)
    volume = driver.create("v")
    assert len(parsed) == 1
    driver.create("v")
    assert len(parsed) == 1 + 2
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id,
        volume_capabilities=[mount_capability()],
        volume_context=dict(volume.volume_context),
        parameters={"url": URL},
    )
    assert driver.controller.ValidateVolumeCapabilities(request).HasField("confirmed")
    assert len(parsed) == 1 + 2 + 3, "the context, the parameters and the record"


def test_the_operators_policy_holds_for_new_volumes(home: Path, volumes: VolumesInMemory) -> None:
    policy = PolicySettings(allowed_endpoints=("https://s3.example.com",))
    with serving(home / "s", InMemoryDataPlane(), volumes, policy=policy) as driver:
        with refused(Code.PERMISSION_DENIED) as found:
            driver.create("v", parameters={"url": URL, "endpoint": "https://other.example.com"})
        assert found[0].class_name == "EndpointNotAllowed"
        driver.create("v", parameters={"url": URL, "endpoint": "https://s3.example.com"})


def health(driver: CsiClient, volume_id: str) -> dict[str, int]:
    request = csi_pb2.ControllerGetVolumeHealthRequest(volume_id=volume_id)
    answer = driver.controller.ControllerGetVolumeHealth(request).volume_health
    assert answer.volume_id == volume_id
    return {entry.reason: entry.status for entry in answer.health_statuses}


@pytest.mark.promise("S359")
def test_the_health_of_a_volume_is_what_the_registry_shows(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume_id = driver.create("v").volume_id
    assert health(driver, volume_id) == {}
    volumes.lost_manifests = True
    assert health(driver, volume_id) == {"SnapshotMissing": csi_pb2.INACCESSIBLE}
    static = volumes.records[volume_id].model_copy(update={"volume_id": "static-1", "dynamic": False})
    volumes.registry.volumes.put(static)
    assert health(driver, "static-1") == {}, "it lists the dataset anew"
    with refused(Code.NOT_FOUND) as found:
        health(driver, "no-such-volume")
    assert "volume_id" in found[0].message
    for wrong in ("", "x" * 5000, "a\nb"):
        with refused(Code.INVALID_ARGUMENT) as found:
            health(driver, wrong)
        assert "volume_id" in found[0].message


@pytest.mark.promise("S359")
def test_the_health_of_all_volumes_is_listed_in_pages(driver: CsiClient, volumes: VolumesInMemory) -> None:
    made = {driver.create(f"v-{number}").volume_id for number in range(7)}
    volumes.lost_manifests = True
    listed: list[str] = []
    token = ""
    while True:
        request = csi_pb2.ControllerListVolumeHealthRequest(max_entries=3, starting_token=token)
        page = driver.controller.ControllerListVolumeHealth(request)
        listed += [entry.volume_id for entry in page.entries]
        assert all(entry.health_statuses[0].reason == "SnapshotMissing" for entry in page.entries)
        token = page.next_token
        if not token:
            break
        volumes.delete(listed[-1])  # deleted meanwhile, it does not end the list
    assert set(listed) == made
    assert len(listed) == len(made)
    assert len(driver.controller.ControllerListVolumeHealth(csi_pb2.ControllerListVolumeHealthRequest()).entries) == 5
    with refused(Code.ABORTED) as found:
        driver.controller.ControllerListVolumeHealth(csi_pb2.ControllerListVolumeHealthRequest(starting_token="5"))
    assert "starting_token" in found[0].message
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.controller.ControllerListVolumeHealth(csi_pb2.ControllerListVolumeHealthRequest(max_entries=-1))
    assert "max_entries" in found[0].message
