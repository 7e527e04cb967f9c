"""``hayloft migrate``: what it prints is what the driver accepts, and every option is accounted for."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cli.application import run_command
from csi_driver.cli.migration import csi_s3_rules, gcsfuse_rules, mountpoint_rules
from csi_driver.cli.migration.manifest_rewriting import Report, Rewriting
from csi_driver.cli.migration.translation_rules import Outcome, Rule
from csi_driver.cli.migration.volume_translation import PEERS, Refused, Source, Supplement, translate
from csi_driver.cli.migration.yaml_documents import read_documents, written
from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.model.errors import InvalidParameter
from csi_driver.objects.credentials import parse_secret
from csi_driver.volumes.parameter_text import MountOptions
from csi_driver.volumes.parameters import VolumeParameters
from tests.architecture.kubernetes_schema import violations
from tests.support.peer_manifests import CSI_S3, GCSFUSE, JUICEFS, MOUNTPOINT

ENDPOINT = "https://storage.yandexcloud.net"

pytestmark = pytest.mark.promise("S660")


def migrated(text: str, supplement: Supplement | None = None) -> tuple[list[Any], list[Report], str]:
    """Objects, reports and the text."""
    documents = read_documents("file.yaml", text.encode())
    rewriting = Rewriting(supplement or Supplement())
    rewriting.rewrite(documents)
    made = written(documents, text)
    return list(yaml.safe_load_all(made)), rewriting.reports, made


def outcomes(reports: list[Report]) -> dict[str, Outcome]:
    return {row.option: row.outcome for report in reports for row in report.rows}


def check_ours(objects: list[Any]) -> int:
    """By the driver's own parser and by Kubernetes' schemas; the number of volumes of ours."""
    count = 0
    for one in objects:
        assert violations(one) == [], one
        spec = one.get("spec", {})
        if one["kind"] == "StorageClass" and one["provisioner"] == DRIVER_NAME:
            VolumeParameters.parse(one["parameters"])
            MountOptions.parse(one.get("mountOptions", []))
            count += 1
        if one["kind"] == "PersistentVolume" and spec["csi"]["driver"] == DRIVER_NAME:
            VolumeParameters.parse(spec["csi"]["volumeAttributes"])
            MountOptions.parse(spec.get("mountOptions", []))
            assert spec["accessModes"] == ["ReadOnlyMany"]
            count += 1
        for volume in spec.get("template", {}).get("spec", spec).get("volumes", []):
            if volume.get("csi", {}).get("driver") == DRIVER_NAME:
                VolumeParameters.parse(volume["csi"]["volumeAttributes"])
                assert volume["csi"]["readOnly"] is True
                count += 1
    return count


def test_a_volume_of_mountpoint_becomes_one_of_ours_with_its_claim_and_pod() -> None:
    objects, reports, _ = migrated(MOUNTPOINT)
    assert check_ours(objects) == 1
    volume, claim, pod = objects
    assert volume["spec"]["csi"]["volumeAttributes"] == {
        "url": "s3://amzn-s3-demo-bucket/train/images",
        "region": "us-east-1",
        "uid": "1000",
        "fileMode": "0444",
        "snapshotMaxAge": "300s",
    }
    assert claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True
    found = outcomes(reports)
    assert found["mountOptions: allow-delete"] is Outcome.DROPPED
    assert found["mountOptions: fancy-new-flag"] is Outcome.UNKNOWN
    assert found["cache"] is Outcome.DROPPED


def test_comments_order_and_quotes_stay() -> None:
    text = migrated(MOUNTPOINT)[2]
    for comment in ("# The dataset of the vision team", "# keep this name", "# the bucket of the team"):
        assert comment in text
    assert text.index("capacity:") < text.index("accessModes:") < text.index("volumeHandle:")
    assert 'storageClassName: ""' in text


def test_inline_volumes_and_annotations_of_cloud_storage_fuse() -> None:
    provider = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/cluster"
    objects, reports, _ = migrated(GCSFUSE, Supplement(google_workload_provider=provider))
    assert check_ours(objects) == 2
    volume, _, deployment = objects
    assert volume["spec"]["csi"]["volumeAttributes"]["url"] == "gs://handle-bucket/models"
    assert volume["spec"]["mountOptions"] == ["read_ahead_kb=1024"]
    template = deployment["spec"]["template"]
    assert template["metadata"]["annotations"] == {"example.com/mine": "yes"}
    (inline,) = template["spec"]["volumes"]
    assert inline["csi"]["volumeAttributes"] == {
        "url": "gs://inline-bucket",
        "wholeFiles": "all",
        "identity": "pod",
        "googleWorkloadProvider": provider,
    }
    assert not any(report.refusal for report in reports)


def test_an_inline_volume_that_only_its_pod_may_read_is_said_to_need_an_identity() -> None:
    reports = migrated(GCSFUSE)[1]
    assert outcomes(reports)["the identity of the pod"] is Outcome.IMPOSSIBLE


def test_the_secret_of_csi_s3_gives_the_endpoint_and_keeps_keys_alone() -> None:
    objects, reports, text = migrated(CSI_S3)
    assert check_ours(objects) == 2
    secret, class_, volume = objects
    assert secret["stringData"] == {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "very-secret"}
    assert parse_secret(secret["stringData"])
    assert class_["parameters"]["url"] == "s3://some-bucket"
    assert class_["parameters"]["endpoint"] == ENDPOINT
    assert "csi.storage.k8s.io/controller-publish-secret-name" not in class_["parameters"]
    assert class_["parameters"]["csi.storage.k8s.io/node-publish-secret-name"] == "csi-s3-secret"
    assert volume["spec"]["csi"]["volumeAttributes"]["url"] == "s3://manualbucket/path"
    assert "controllerPublishSecretRef" not in volume["spec"]["csi"]
    assert "very-secret" not in "".join(row.text for report in reports for row in report.rows)
    assert "# of the team" in text


def test_a_secret_in_base64_is_read_too() -> None:
    data = {"accessKeyID": "AKID", "secretAccessKey": "secret", "endpoint": ENDPOINT, "region": "ru-central1"}
    encoded = {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}
    text = CSI_S3.replace("stringData:", "data:")
    for name, value in encoded.items():
        text = "\n".join(f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in text.split("\n"))
    objects, _, _ = migrated(text)
    assert objects[1]["parameters"]["endpoint"] == ENDPOINT
    assert set(objects[0]["data"]) == {"access_key_id", "secret_access_key"}


def test_without_its_secret_a_volume_of_csi_s3_stays_and_the_flag_is_named() -> None:
    text = CSI_S3.partition("---\n")[2]
    objects, reports, _ = migrated(text)
    assert check_ours(objects) == 0
    assert all("--store-endpoint" in report.refusal for report in reports if report.product)
    assert check_ours(migrated(text, Supplement(endpoint=ENDPOINT))[0]) == 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source("csi.juicefs.com", {}), "juicefs sync"),
        (Source("ch.ctrox.csi.s3-driver", {"bucket": "b"}), "block device"),
        (Source("ch.ctrox.csi.s3-driver", {"bucket": "b", "mounter": "s3backer"}), "block device"),
        (Source("ru.yandex.s3.csi", {"mounter": "geesefs"}), "new and empty bucket"),
        (Source("s3.csi.aws.com", {}), "bucketName"),
        (Source("s3.csi.aws.com", {"bucketName": "arn:aws:s3:eu-central-1:1:accesspoint/a"}), "an ARN"),
        (Source("s3.csi.aws.com", {"bucketName": "express--use1-az4--x-s3"}), "directory buckets"),
        (Source("gcsfuse.csi.storage.gke.io", {"bucketName": "_"}), "all buckets"),
        (Source("s3.csi.aws.com", {"bucketName": "b"}, ["region nowhere in particular"]), "the driver refuses"),
    ],
)
@pytest.mark.promise("S661")
def test_what_cannot_be_a_volume_of_ours_is_refused_with_a_reason(source: Source, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        translate(source, Supplement(endpoint=ENDPOINT))


@pytest.mark.promise("S661")
def test_a_refused_volume_stays_as_it_is() -> None:
    objects, reports, _ = migrated(JUICEFS)
    assert objects == list(yaml.safe_load_all(JUICEFS))
    (report,) = (one for one in reports if one.refusal)
    assert "blocks" in report.refusal


def test_a_volume_that_ctrox_made_shows_the_files_and_not_their_frame() -> None:
    source = Source("ch.ctrox.csi.s3-driver", {"mounter": "rclone"}, handle="bucket/pvc-1")
    assert translate(source, Supplement(endpoint=ENDPOINT)).parameters["url"] == "s3://bucket/pvc-1/csi-fs"
    whole = Source("ch.ctrox.csi.s3-driver", {"mounter": "rclone", "usePrefix": "true"}, handle="bucket/data")
    assert translate(whole, Supplement(endpoint=ENDPOINT)).parameters["url"] == "s3://bucket/data"


def test_a_list_is_rewritten_and_fields_of_the_server_go() -> None:
    (volume,) = yaml.safe_load_all(MOUNTPOINT.partition("---\n")[0])
    names = ("pv.kubernetes.io/bound-by-controller", "kubectl.kubernetes.io/last-applied-configuration")
    volume["metadata"] |= {"uid": "u", "resourceVersion": "1", "annotations": dict.fromkeys(names, "yes")}
    volume["metadata"]["finalizers"] = ["external-provisioner.volume.kubernetes.io/finalizer"]
    volume["spec"]["claimRef"]["uid"] = "v"
    volume["status"] = {"phase": "Bound"}
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [volume]})
    (made,), reports, _ = migrated(text)
    assert check_ours(made["items"]) == 1
    assert "status" not in made["items"][0]
    assert made["items"][0]["metadata"] == {"name": "s3-pv"}
    assert "uid" not in made["items"][0]["spec"]["claimRef"]
    assert "the API server" in "".join(row.text for report in reports for row in report.rows)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: {{ .Values.bucket }}\n", "line 1 is a template of Helm"),
        ("b: 1\n{{- if .Values.x }}\na: 1\n{{- end }}\n", "line 2 is a template of Helm"),
        ("a: [1\nb: 2\n", "Line 2"),
        ("a: 1\na: 2\n", "Line 2: a key is there twice"),
        ("[" * 1500, "too deep|Line 1"),
        ("a: &a [*b]\n", "undefined alias"),
    ],
)
@pytest.mark.promise("S662")
def test_what_is_no_manifest_is_refused_with_its_line(text: str, part: str) -> None:
    with pytest.raises(InvalidParameter, match=part):
        read_documents("file.yaml", text.encode())


@pytest.mark.promise("S662")
def test_a_secret_with_a_mistake_is_not_repeated() -> None:
    text = "kind: Secret\nstringData:\n  accessKeyID: very-secret\n  accessKeyID: other-secret\n"
    with pytest.raises(InvalidParameter) as caught:
        read_documents("file.yaml", text.encode())
    assert "-secret" not in str(caught.value)


@pytest.mark.promise("S662")
def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="UTF-8"):
        read_documents("file.yaml", b"\xff\xfe\x00")


def test_templates_of_others_are_no_templates_of_helm() -> None:
    assert read_documents("file.yaml", b'args: ["{{inputs.parameters.message}}"]\n')


def test_anchors_that_name_each_other_often_cost_no_time() -> None:
    """Ten to the power of nine paths lead through this document."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    objects, reports, _ = migrated("\n".join(["kind: ConfigMap", *lines, ""]))
    assert reports == []
    assert objects[0]["kind"] == "ConfigMap"


@pytest.mark.promise("S660")
def test_the_command_prints_the_manifest_and_the_table_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mountpoint.yaml"
    path.write_text(MOUNTPOINT)
    assert run_command(["migrate", str(path)]) == 6
    out, err = capfd.readouterr()
    assert check_ours(list(yaml.safe_load_all(out))) == 1
    assert "fancy-new-flag  unknown" in err
    path.write_text(MOUNTPOINT.replace("    - fancy-new-flag 7\n", ""))
    assert run_command(["migrate", str(path)]) == 0
    capfd.readouterr()
    assert run_command(["migrate", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in capfd.readouterr().err


def test_without_its_library_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in the driver's image."""
    path = tmp_path / "mountpoint.yaml"
    path.write_text(MOUNTPOINT)
    monkeypatch.setitem(sys.modules, "ruamel.yaml.error", None)
    assert run_command(["migrate", str(path)]) == 1
    assert "pip install 'hayloft[migrate]'" in capfd.readouterr().err


def test_the_command_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    text = "kind: ConfigMap\nmetadata: {name: none}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run_command(["migrate", "-"]) == 6
    out, err = capfd.readouterr()
    assert out == text
    assert "no volume of" in err


TABLES = [
    mountpoint_rules.ATTRIBUTES,
    mountpoint_rules.OPTIONS,
    gcsfuse_rules.ATTRIBUTES,
    gcsfuse_rules.OPTIONS,
    csi_s3_rules.ATTRIBUTES,
    csi_s3_rules.GEESEFS,
    csi_s3_rules.S3FS,
    csi_s3_rules.RCLONE,
]


@pytest.mark.parametrize("rules", TABLES)
def test_a_name_is_in_a_table_once(rules: tuple[Rule, ...]) -> None:
    names = [name for rule in rules for name in rule.names]
    assert sorted(names) == sorted(set(names))


_NAMES = sorted({name.replace("*", "x") for rules in TABLES for rule in rules for name in rule.names})
_VALUES = st.one_of(
    st.sampled_from(["", "true", "false", "-1", "0", "1000", "0644", "/data/", "s3://x", "indefinite", "1m0s", "10MB"]),
    st.text(max_size=12),
)
_ATTRIBUTES = st.dictionaries(
    st.one_of(st.sampled_from([*_NAMES, "mountOptions", "options", "mounter", "bucketName"]), st.text(max_size=8)),
    _VALUES,
    max_size=6,
)
_FLAGS = st.lists(
    st.builds(
        lambda name, mark, value: f"{name}{mark}{value}", st.sampled_from(_NAMES), st.sampled_from("= :"), _VALUES
    ),
    max_size=6,
)


@given(st.sampled_from(sorted(PEERS)), _ATTRIBUTES, _FLAGS, st.one_of(st.none(), st.text(max_size=20)), st.booleans())
def test_whatever_is_given_the_result_is_what_the_driver_accepts(
    driver: str, attributes: dict[str, str], flags: list[str], handle: str | None, inline: bool
) -> None:
    source = Source(driver, attributes, flags, handle, inline)
    try:
        made = translate(source, Supplement(endpoint=ENDPOINT))
    except Refused:
        return
    VolumeParameters.parse(made.parameters)
    MountOptions.parse(made.mount_options)
    told = " ".join(row.option for row in made.rows)
    for name in attributes:
        if not name.startswith(("csi.storage.k8s.io/", "storage.kubernetes.io/")) and name not in (
            "options",
            "mountOptions",
        ):
            assert name in told


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([*PEERS, "StorageClass", "Secret"]), st.text()
)
_KEYS = st.sampled_from(
    re.findall(
        r"\w+",
        "kind metadata spec csi driver provisioner parameters volumeAttributes mountOptions data accessModes volumes "
        "containers items name annotations claimRef stringData nodeStageSecretRef",
    )
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=5)),
    max_leaves=25,
)
_KINDS = st.sampled_from(["StorageClass", "PersistentVolume", "PersistentVolumeClaim", "Pod", "Secret", "List", None])


@given(st.lists(st.tuples(_KINDS, _TREES), max_size=3))
def test_odd_documents_are_passed_through_or_rewritten_and_never_fail(documents: list[tuple[str | None, Any]]) -> None:
    bodies = [{**tree, "kind": kind} if isinstance(tree, dict) and kind else tree for kind, tree in documents]
    text = yaml.safe_dump_all(bodies)
    try:
        _, reports, made = migrated(text)
    except InvalidParameter:
        return  # a key twice, or the like, once ruamel.yaml has read it
    if not reports:
        assert list(yaml.safe_load_all(made)) == list(yaml.safe_load_all(text))
