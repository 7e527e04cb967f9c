"""The bill of materials of the image, made from what pip and dpkg report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.software_lists import problems_of
from tools import sbom

RELEASE = {"ID": "debian", "VERSION_ID": "12"}
LISTING = "libc6:amd64\t2.36-9+deb12u14\tamd64\tglibc\t2.36-9+deb12u14\nadduser\t3.134\tall\tadduser\t3.134\n"


def entry(name: str, version: str, *requires: str, **more: Any) -> dict[str, Any]:
    archive = more.pop("archive_info", {"hashes": {"sha256": "0" * 64}})
    metadata = {"name": name, "version": version, "requires_dist": list(requires), **more}
    return {"download_info": {"url": "file:///a.whl", "archive_info": archive}, "metadata": metadata}


def made(*entries: dict[str, Any]) -> dict[str, Any]:
    driver = entry("hayloft", "0.1.0", "a_b>=1", license_expression="Apache-2.0", archive_info={})
    reports = [{"install": list(entries)}, {"install": [driver]}]
    found = sbom.document(reports, sbom.debian_packages(LISTING), RELEASE)
    assert problems_of(json.dumps(found)) == []
    return found


def component(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (one for one in found["components"] if one["name"] == name)
    return dict(one)


def below(found: dict[str, Any], reference: str) -> list[str]:
    (needed,) = (one["dependsOn"] for one in found["dependencies"] if one["ref"] == reference)
    return list(needed)


@pytest.mark.promise("S308")
def test_packages_of_pip_and_of_the_distribution_are_listed() -> None:
    found = made(entry("A.B", "1.0+local", license_expression="MIT"))
    assert component(found, "a-b") == {
        "type": "library",
        "bom-ref": "pkg:pypi/a-b@1.0%2Blocal",
        "name": "a-b",
        "version": "1.0+local",
        "purl": "pkg:pypi/a-b@1.0%2Blocal",
        "hashes": [{"alg": "SHA-256", "content": "0" * 64}],
        "licenses": [{"expression": "MIT"}],
    }
    purl = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12"
    assert component(found, "libc6")["purl"] == purl
    assert "hashes" not in component(found, "hayloft"), "its wheel was built with the image"
    assert {"pkg:pypi/hayloft@0.1.0", purl} <= set(below(found, "image"))


def test_the_report_of_an_older_pip_has_its_hash_elsewhere() -> None:
    found = made(entry("a-b", "1.0", archive_info={"hash": "sha256=" + "1" * 64}))
    assert component(found, "a-b")["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]


def test_dependencies_are_those_that_hold_here() -> None:
    found = made(
        entry("a-b", "1", "c[fast]", "absent", 'd; python_version < "3"', 'd; extra == "other"'),
        entry("c", "2", 'e; extra == "fast"', 'd; extra == "slow"'),
        entry("d", "3"),
        entry("e", "4"),
    )
    assert below(found, "pkg:pypi/hayloft@0.1.0") == ["pkg:pypi/a-b@1"]
    assert below(found, "pkg:pypi/a-b@1") == ["pkg:pypi/c@2"]
    assert below(found, "pkg:pypi/c@2") == ["pkg:pypi/e@4"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"license": "BSD\n\nlong text"}, [{"license": {"name": "BSD"}}]),
        ({"classifier": ["License :: OSI Approved :: MIT License"]}, [{"license": {"name": "MIT License"}}]),
        ({"license_expression": "MIT", "classifier": ["License :: OSI Approved :: X"]}, [{"expression": "MIT"}]),
        ({}, []),
    ],
)
def test_a_licence_is_taken_from_where_it_is(metadata: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert sbom.licence(metadata) == expected
    made(entry("a-b", "1", **metadata))


def test_the_licence_of_a_package_is_read_where_pip_is_too_old_to_report_it() -> None:
    report = {"version": "1", "install": [entry("pydantic", "0")]}
    (installed,) = sbom.with_installed_metadata(report)["install"]
    assert sbom.licence(installed["metadata"]) == [{"expression": "MIT"}]
    assert installed["metadata"]["requires_dist"]


def test_the_same_packages_give_the_same_document() -> None:
    packages = [entry("a-b", "1", "c"), entry("c", "2")]
    assert json.dumps(made(*packages)) == json.dumps(made(*reversed(packages)))
