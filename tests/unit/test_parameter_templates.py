"""Templates in a StorageClass: what an administrator wrote stays around what the author of a claim chose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.csi.parameter_templates import expand_templates
from csi_driver.model.errors import InvalidParameter, RequestError
from csi_driver.model.tenant import Tenant
from csi_driver.settings import PolicySettings
from csi_driver.volumes.parameters import VolumeParameters

NAMES = {
    "csi.storage.k8s.io/pvc/name": "images",
    "csi.storage.k8s.io/pvc/namespace": "team-a",
    "csi.storage.k8s.io/pv/name": "pvc-123",
}
ANNOTATION = "${pvc.metadata.annotations['data.example.com/set']}"


def annotated(value: str | None) -> dict[str, str]:
    return {} if value is None else {"data.example.com/set": value, "other": "x"}


def expand(parameters: Mapping[str, str], value: str | None = "v1.2_3") -> dict[str, str]:
    return expand_templates({**parameters, **NAMES}, lambda namespace, name: annotated(value))


@pytest.mark.promise("S400")
@pytest.mark.parametrize(
    "template", [ANNOTATION, '${pvc.metadata.annotations["data.example.com/set"]}', "${pvc.annotations['other']}"]
)
def test_an_annotation_of_the_claim_is_a_part_of_the_path(template: str) -> None:
    asked: list[tuple[str, str]] = []

    def annotations(namespace: str, name: str) -> Mapping[str, str]:
        asked.append((namespace, name))
        return {"data.example.com/set": "coco", "other": "coco"}

    parameters = {"url": f"s3://data/{template}/train", "include": f"{template}-*.tar"}
    found = expand_templates({**parameters, **NAMES}, annotations)
    assert found == {"url": "s3://data/coco/train", "include": "coco-*.tar"}
    assert asked == [("team-a", "images")]


@pytest.mark.promise("S400")
def test_the_claim_is_read_for_a_template_of_an_annotation_alone() -> None:
    def annotations(namespace: str, name: str) -> Mapping[str, str]:
        raise AssertionError("was read")

    url = "s3://data/${pvc.namespace}/${pvc.metadata.name}/${pv.metadata.name}"
    assert expand_templates({"url": url, **NAMES}, annotations)["url"] == "s3://data/team-a/images/pvc-123"


@pytest.mark.promise("S400")
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_claim_without_the_annotation_is_told_how_to_get_it(value: str | None) -> None:
    with pytest.raises(InvalidParameter, match=r"claim team-a/images has.*kubectl -n team-a annotate pvc images"):
        expand({"url": f"s3://data/{ANNOTATION}"}, value)


@pytest.mark.parametrize(
    "value",
    [
        *("..", ".", "a/b", "../b", "a/../b", "/", "a b", "a,b", "*", "a*", "[a]", "?x", "#", "%2e%2e", "a%2fb", "@h"),
        *("a@b", "h:1", "x=1", "{a,b}", "!x", "a\nb", "a\0", "-a", "a-", "ä", "${pv.name}", "a" * 254, "\\", "~"),
    ],
)
@pytest.mark.promise("S401")
def test_a_value_that_could_change_what_the_class_says_is_refused(value: str) -> None:
    with pytest.raises(InvalidParameter, match=r"one part of a path") as caught:
        expand({"url": f"s3://data/{ANNOTATION}/train"}, value)
    assert "url" in str(caught.value)


@pytest.mark.promise("S401")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("endpoint", f"https://{ANNOTATION}"),
        ("endpoint", f"https://s3.{ANNOTATION}.example.com"),
        ("url", f"http://{ANNOTATION}/data"),
        ("url", "${pvc.name}://bucket/data"),
        ("url", "s${pvc.name}://bucket/data"),
        ("endpoint", "ht${pvc.namespace}://host"),
    ],
)
def test_no_annotation_is_part_of_a_host_and_no_template_of_a_scheme(key: str, value: str) -> None:
    with pytest.raises(InvalidParameter, match=key):
        expand({"url": "s3://data/x", key: value}, "https")


@pytest.mark.parametrize(
    "template",
    [
        *("${pvc.metadata.annotations}", "${pvc.metadata.annotations[x]}", "${pvc.metadata.annotations['']}"),
        *("${pvc.metadata.annotations['a'']}", "${pvc.metadata.annotations['a\"]}", "${pvc.metadata.labels['a']}"),
        *("${pv.metadata.annotations['a']}", "${}", "${pvc.metadata.annotations['a/b/c']}"),
    ],
)
def test_a_template_of_another_form_is_refused_with_a_list_of_the_known_ones(template: str) -> None:
    with pytest.raises(InvalidParameter, match=r"pvc.metadata.annotations\['NAME'\]"):
        expand({"url": f"s3://data/{template}"})


def test_a_process_outside_of_a_cluster_says_that_it_cannot_read_claims() -> None:
    with pytest.raises(InvalidParameter, match="no access to the claims"):
        expand_templates({"url": f"s3://data/{ANNOTATION}", **NAMES})


CLASSES = (
    {"url": f"s3://data/teams/{ANNOTATION}/train"},
    {"url": "s3://data/x", "include": f"{ANNOTATION}/*.jpg,b", "exclude": ANNOTATION},
    {"url": "https://files.example.com/data/${pvc.metadata.annotations['other']}/", "manifest": f"{ANNOTATION}.csv"},
    {"url": f"s3://data/x/{ANNOTATION}", "mountOptions": f"noexec,{ANNOTATION}", "region": ANNOTATION},
    {"url": "s3://data/${pvc.name}", "endpoint": f"https://s3.example.com/{ANNOTATION}"},
    {"url": "az://${pvc.namespace}/${pv.name}", "warmupInclude": ANNOTATION},
)
"""What a cautious administrator writes, and what a careless one does."""


@pytest.mark.promise("S401")
@given(parameters=st.sampled_from(CLASSES), value=st.text(max_size=40) | st.from_regex(r"[a-z./*,@:%=-]{1,12}"))
def test_whatever_a_claim_says_the_class_decides_host_bucket_and_depth(parameters: dict[str, str], value: str) -> None:
    """Compared with what the class means for a value that is one harmless word."""

    def shape(word: str, shown: str) -> tuple[object, ...]:
        """With ``shown`` for the word, which is in no class."""
        expanded = expand_templates({**parameters, **NAMES}, lambda *_: {"data.example.com/set": word, "other": word})
        parsed = VolumeParameters.parse(expanded, PolicySettings(), Tenant("team-a"))
        url = parsed.url
        lists = (parsed.include, parsed.exclude, parsed.warmup_include, parsed.mount_options.flags)
        return (
            (url.scheme, url.bucket, [shown if part == word else part for part in url.prefix.split("/")]),
            (parsed.endpoint or "").replace(word, shown).rstrip("/"),
            [[pattern.replace(word, shown) for pattern in patterns] for patterns in lists],
            (parsed.manifest or "").replace(word, shown),
        )

    with suppress(RequestError):  # refused: nothing was reached
        value = value.strip()
        found = shape(value, value)
        plain = {**parameters}
        plain.pop("mountOptions", None)
        assert "mountOptions" not in parameters or value in ("ro", "nosuid", "nodev", "noexec", "noatime")
        if plain == parameters:
            assert found == shape("zq0zq", value)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", value)
