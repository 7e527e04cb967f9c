"""Volume parameters: accepted values, refused values, and the text of a refusal."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.model.dataset import DatasetUrl
from csi_driver.model.errors import (
    EndpointNotAllowed,
    HayloftError,
    InvalidParameter,
    MissingParameter,
    ReadOnlyVolume,
    RequestError,
    UnknownParameter,
)
from csi_driver.settings import PolicySettings
from csi_driver.volumes.parameter_text import MountOptions, duration, duration_text, globs, globs_text
from csi_driver.volumes.parameters import PARAMETERS, VolumeParameters

URL = {"url": "s3://bucket/train"}

EVERYTHING = {
    "url": "s3://bucket/train/",
    "include": "**/*.jpg,**/*.png",
    "exclude": "a,b/*\nc/**\n",
    "endpoint": "https://s3.example.com:9000/",
    "region": "eu-central-1",
    "addressingStyle": "path",
    "anonymous": "False",
    "requesterPays": "true",
    "backend": "s3fs",
    "uid": "1000",
    "gid": "2000",
    "fileMode": "0440",
    "dirMode": "550",
    "mountOptions": "noatime, read_ahead_kb=1024,ro",
    "snapshotMaxAge": "1h30m",
    "requestTimeout": "10s",
    "deadline": "5m",
}


def parse(**changes: str) -> VolumeParameters:
    return VolumeParameters.parse({**URL, **changes})


def test_a_url_alone_gives_the_documented_defaults() -> None:
    parameters = VolumeParameters.parse(URL)
    assert parameters.url == DatasetUrl("s3", "bucket", "train/")
    assert (parameters.uid, parameters.gid) == (0, 0)
    assert (parameters.file_mode, parameters.dir_mode) == (0o444, 0o555)
    assert parameters.snapshot_max_age_s == 600
    assert (parameters.store_options.request_timeout_s, parameters.store_options.deadline_s) == (30, 120)
    assert parameters.store_options.endpoint is None


def test_every_parameter_is_parsed() -> None:
    parameters = VolumeParameters.parse(EVERYTHING)
    assert parameters.dataset.include == ("**/*.jpg", "**/*.png")
    assert parameters.dataset.exclude == ("a,b/*", "c/**")
    assert parameters.endpoint == "https://s3.example.com:9000"
    options = parameters.store_options
    assert (options.region, options.addressing_style, options.backend) == ("eu-central-1", "path", "s3fs")
    assert (options.anonymous, options.requester_pays) == (False, True)
    assert (options.request_timeout_s, options.deadline_s) == (10, 300)
    assert (parameters.uid, parameters.gid) == (1000, 2000)
    assert (parameters.file_mode, parameters.dir_mode) == (0o440, 0o550)
    assert parameters.mount_options.read_ahead_kib == 1024
    assert parameters.snapshot_max_age_s == 5400


def test_the_context_is_canonical_and_parses_to_the_same_parameters() -> None:
    parameters = VolumeParameters.parse(EVERYTHING)
    context = parameters.to_context()
    assert VolumeParameters.parse(context) == parameters
    assert VolumeParameters.parse(context).to_context() == context
    assert "anonymous" not in context  # its default


def test_keys_of_kubernetes_are_dropped() -> None:
    parameters = parse(
        **{
            "csi.storage.k8s.io/pod.name": "p",
            "csi.storage.k8s.io/serviceAccount.tokens": "hush",
            "storage.kubernetes.io/csiProvisionerIdentity": "x",
        }
    )
    assert parameters.to_context() == {"url": "s3://bucket/train/"}
    assert "hush" not in repr(parameters)


@pytest.mark.parametrize(
    ("given", "count_bytes", "canonical"),
    [
        ("200GiB", 200 << 30, "200GiB"),
        ("200Gi", 200 << 30, "200GiB"),
        ("1.5TB", 1_500_000_000_000, "1464843750KiB"),
        ("1024", 1024, "1KiB"),
        ("1000", 1000, "1000"),
    ],
)
def test_sizes_are_parsed_in_the_units_of_kubernetes_and_of_disk_manufacturers(
    given: str, count_bytes: int, canonical: str
) -> None:
    parameters = parse(cacheReservation=given)
    assert parameters.cache_reservation_bytes == count_bytes
    assert parameters.to_context()["cacheReservation"] == canonical
    assert VolumeParameters.parse(parameters.to_context()) == parameters


def test_an_empty_value_counts_as_not_given() -> None:
    assert parse(region="", include=" ") == VolumeParameters.parse(URL)
    with pytest.raises(MissingParameter, match=r"url: is required.*s3://"):
        VolumeParameters.parse({"url": " "})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("url", "bucket/train", "scheme://bucket/prefix"),
        ("url", "simplecache::s3://bucket", "chained"),
        ("include", "shard-[0", "glob such as"),
        ("exclude", "a**b", "glob such as"),
        ("endpoint", "s3.example.com", "https://"),
        ("endpoint", "ftp://s3.example.com", "https://"),
        ("endpoint", "http://host:99999", "https://"),
        ("region", "eu central", "eu-central-1"),
        ("addressingStyle", "pathh", "Did you mean path?"),
        ("anonymous", "yes", "true or false"),
        ("requesterPays", "1", "true or false"),
        ("caBundle", "/etc/ssl/ca.pem", "not a path"),
        ("backend", "boto", "obstore"),
        ("uid", "nobody", "number from 0"),
        ("gid", "4294967295", "number from 0"),
        ("uid", "-1", "number from 0"),
        ("fileMode", "0999", "octal"),
        ("fileMode", "0644", "use 0444"),
        ("dirMode", "0777", "use 0555"),
        ("dirMode", "4555", "octal"),
        ("mountOptions", "exec", "noexec"),
        ("mountOptions", "read_ahead_kb=1", "128"),
        ("mountOptions", "read_ahead_kb=²", "128"),
        ("mountOptions", "uid=1000", "parameters uid, gid"),
        ("cacheReservation", "half", "200GiB"),
        ("cacheReservation", "-1GiB", "200GiB"),
        ("cacheReservation", "1.5", "200GiB"),
        ("snapshotMaxAge", "10", "10m"),
        ("snapshotMaxAge", "-1m", "10m"),
        ("requestTimeout", "0", "from 1s"),
        ("deadline", "10s", "at least requestTimeout"),
    ],
)
def test_a_refusal_names_the_field_and_the_allowed_values(key: str, value: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse(**{key: value})
    assert str(refused.value).startswith(key)
    assert says in str(refused.value)


def test_a_leading_slash_of_a_glob_is_preserved_because_it_is_significant() -> None:
    assert parse(include="/only.bin").dataset.include == ("/only.bin",)


def test_certificates_are_accepted_as_text_and_preserved() -> None:
    pem = Path(certifi.where()).read_text()
    certificate = pem[pem.index("-----BEGIN") : pem.index("-----END CERTIFICATE-----") + 25]
    parameters = parse(caBundle=f"\n{certificate}\n\n")
    assert parameters.store_options.ca_bundle_pem == certificate + "\n"
    assert VolumeParameters.parse(parameters.to_context()) == parameters
    with pytest.raises(InvalidParameter, match="PEM form"):
        parse(caBundle=certificate.replace("M", "!", 3))


@pytest.mark.promise("S288")
def test_the_refusal_of_an_unknown_parameter_suggests_the_most_similar_one() -> None:
    for wrong, right in (
        ("snapshot_max_age", "snapshotMaxAge"),
        ("includes", "include"),
        ("warmUp", "warmup"),
        ("endPoint", "endpoint"),
        ("forcePathStyle", "addressingStyle"),
    ):
        with pytest.raises(UnknownParameter) as refused:
            parse(**{wrong: "x"})
        assert str(refused.value) == f"{wrong}: there is no such parameter; use {right}"


@pytest.mark.promise("S288")
@pytest.mark.parametrize("name", ["bucket", "bucketName", "prefix", "source", "uri", "path"])
def test_other_names_of_the_place_lead_to_the_url(name: str) -> None:
    with pytest.raises(UnknownParameter) as refused:
        parse(**{name: "my-data"})
    assert str(refused.value) == (
        f"{name}: there is no such parameter; use url; it names both bucket and prefix: s3://bucket/prefix"
    )


def test_a_name_like_no_other_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(UnknownParameter) as refused:
        parse(xyzzy="x")
    assert str(refused.value).startswith("xyzzy: there is no such parameter; there are url, include, exclude, ")


@pytest.mark.parametrize(
    "given_",
    [
        {"secretAccessKey": "hush-hush"},
        {"url": "s3://key:hush-hush@bucket/train"},
        {"url": "https://host/data?X-Amz-Signature=hush-hush"},
        {"endpoint": "https://user:hush-hush@s3.example.com"},
        {"caBundle": "-----BEGIN PRIVATE KEY-----\nhush-hush\n-----END PRIVATE KEY-----"},
    ],
)
def test_a_secret_among_the_parameters_is_refused_and_not_repeated(given_: dict[str, str]) -> None:
    with pytest.raises(RequestError) as refused:
        VolumeParameters.parse({**URL, **given_})
    assert "hush" not in str(refused.value)
    assert "hush" not in repr(refused.value)


def test_a_mount_flag_for_writing_is_refused_because_volumes_are_read_only() -> None:
    with pytest.raises(ReadOnlyVolume, match=r"mountOptions.*read-only"):
        parse(mountOptions="noatime,rw")


def test_flags_of_a_capability_are_parsed_like_those_of_the_attribute() -> None:
    assert (
        MountOptions.parse(["noexec", "read_ahead_kb=0256"])
        == parse(mountOptions="read_ahead_kb=256,noexec").mount_options
    )
    assert MountOptions.parse(["noexec"]).no_exec
    assert not MountOptions.parse([]).no_exec


def test_parameters_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="payer must be known"):
        parse(anonymous="true", requesterPays="true")
    with pytest.raises(InvalidParameter, match="backend"):
        VolumeParameters.parse({"url": "gs://bucket", "backend": "s3fs"})
    for url, pays in (("s3://bucket", "true"), ("gs://bucket", "false")):
        with pytest.raises(InvalidParameter, match="billingProject"):
            VolumeParameters.parse({"url": url, "requesterPays": pays, "billingProject": "team-a"})


@pytest.mark.promise("S268")
def test_the_project_that_pays_is_the_id_of_one() -> None:
    given = {"url": "gs://bucket", "requesterPays": "true"}
    for project in ("team-a-1234", "example.com:team"):
        assert VolumeParameters.parse(given | {"billingProject": project}).store_options.billing_project == project
    for project in ("team a", "a/b", "a?b=c", "-a"):
        with pytest.raises(InvalidParameter, match="billingProject"):
            VolumeParameters.parse(given | {"billingProject": project})


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        VolumeParameters.parse(URL).uid = 5  # type: ignore[misc]


def test_parameters_that_affect_the_listing_are_distinguished_from_those_that_do_not() -> None:
    assert parse(uid="5", snapshotMaxAge="0").shows_same_as(parse())
    assert not parse(exclude="*.tmp").shows_same_as(parse())
    assert not parse(endpoint="http://a").shows_same_as(parse(endpoint="http://b"))


@given(
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=0x2000, exclude_characters="\x7f\x85"), min_size=1),
        max_size=5,
    )
)
def test_globs_survive_a_round_trip_through_text(patterns: list[str]) -> None:
    wanted = tuple(
        stripped for pattern in patterns if (stripped := pattern.strip()) and len(stripped.splitlines()) == 1
    )
    assert globs("include", globs_text(wanted)) == wanted


@given(st.integers(min_value=0, max_value=10**8))
def test_durations_survive_a_round_trip_through_text(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert duration("deadline", duration_text(seconds), 0, 10**6) == pytest.approx(seconds, abs=1e-6)


@given(st.dictionaries(st.sampled_from([*EVERYTHING, "caBundle"]), st.text(max_size=30)))
def test_every_text_parses_to_parameters_or_raises_a_request_error(texts: dict[str, str]) -> None:
    try:
        parameters = VolumeParameters.parse({**URL, **texts})
    except HayloftError:
        return
    assert VolumeParameters.parse(parameters.to_context()) == parameters


# -- policy ---------------------------------------------------------------------------------------------------------

ALLOWED = PolicySettings(allowed_endpoints=("https://s3.corp.example", "http://minio:9000/tenants"))


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://s3.corp.example",
        "https://S3.Corp.Example:443/",
        "http://minio:9000/tenants/a",
        "http://minio:9000/tenants",
    ],
)
def test_endpoints_on_the_list_are_allowed(endpoint: str) -> None:
    VolumeParameters.parse({**URL, "endpoint": endpoint}, ALLOWED)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://s3.corp.example.evil.org",
        "http://s3.corp.example",
        "https://s3.corp.example:8443",
        "http://minio:9000",
        "http://minio:9000/tenants-b",
        "http://minio:9000/tenants/../admin",
        "http://minio:9000/tenants/%2e%2e/admin",
    ],
)
def test_endpoints_that_are_not_on_the_list_are_refused(endpoint: str) -> None:
    with pytest.raises(EndpointNotAllowed, match="endpoint"):
        VolumeParameters.parse({**URL, "endpoint": endpoint}, ALLOWED)


def test_a_web_url_is_an_endpoint_too() -> None:
    with pytest.raises(EndpointNotAllowed, match=r"169\.254\.169\.254"):
        VolumeParameters.parse({"url": "http://169.254.169.254/latest/"}, ALLOWED)
    VolumeParameters.parse({"url": "https://s3.corp.example/data/"}, ALLOWED)


def test_the_providers_own_service_needs_no_listing() -> None:
    for url in ("s3://b/x", "gs://b/x", "az://b/x"):
        VolumeParameters.parse({"url": url}, ALLOWED)


@pytest.mark.parametrize("url", ["file:///etc", "local:///etc", "git:///srv/repository", "zip:///etc/x.zip"])
def test_files_of_the_node_need_the_operators_permission(url: str) -> None:
    with pytest.raises(EndpointNotAllowed, match="allow-file-urls"):
        VolumeParameters.parse({"url": url}, PolicySettings())
    VolumeParameters.parse(
        {"url": url}, PolicySettings(allow_file_urls=True, allowed_endpoints=("https://s3.example",))
    )


# -- docs/parameters.md -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "parameters.md").read_text()
TABLE = PAGE.partition("<!-- generated: parameters")[2].partition("<!-- end of parameters -->")[0]
ROWS = {
    cells[0].strip("`"): cells
    for line in TABLE.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
}


def test_the_page_describes_every_parameter_and_no_other() -> None:
    assert list(ROWS) == list(PARAMETERS)


def test_defaults_on_the_page_are_the_defaults() -> None:
    written = {name: cells[1].strip("`") for name, cells in ROWS.items() if cells[1].startswith("`")}
    assert set(written) >= {"uid", "fileMode", "snapshotMaxAge", "deadline"}
    assert VolumeParameters.parse({**URL, **written}) == VolumeParameters.parse(URL)


def test_examples_on_the_page_are_accepted() -> None:
    pods = {
        "s3://b/p": ("awsRoleArn", "audience"),
        "gs://b/p": ("googleWorkloadProvider", "googleServiceAccount"),
        "az://b/p": ("azureTenantId", "azureClientId", "azureStorageAccount"),
    }
    for url, names in pods.items():
        role = {name: ROWS[name][3].strip("`") for name in ("identity", *names)}
        VolumeParameters.parse({"url": url, **role})
    of_pods = [name for names in pods.values() for name in names]
    alone = ("caBundle", "anonymous", "manifest", "billingProject", "identity", "warmupTrace", *of_pods)
    VolumeParameters.parse({name: cells[3].strip("`") for name, cells in ROWS.items() if name not in alone})
    billed = {name: ROWS[name][3].strip("`") for name in ("requesterPays", "billingProject")}
    VolumeParameters.parse({"url": "gs://my-bucket/train", **billed})
    VolumeParameters.parse({"url": "https://data.example.com/train", "manifest": ROWS["manifest"][3].strip("`")})
    VolumeParameters.parse({**URL, "anonymous": "true"})
    VolumeParameters.parse({**URL, "warmupTrace": ROWS["warmupTrace"][3].strip("`")})
    for document in yaml.safe_load_all(PAGE.split("```yaml")[-1].split("```")[0]):
        attributes = document.get("parameters") or document["spec"]["csi"]["volumeAttributes"]
        filled = {key: value.replace("${pvc.namespace}", "n") for key, value in attributes.items()}
        VolumeParameters.parse(filled, PolicySettings())
        MountOptions.parse(document.get("mountOptions", []))
