"""The software bill of materials of the image: ``python sbom.py pip-report.json > sbom.cdx.json`` (CycloneDX 1.6).

Runs while the image is built, with the image's own Python, so it needs the standard library and ``packaging`` alone
(both are in the image). It lists

- the packages of the lock file as pip has installed them (``pip install --report``) and as they describe themselves:
  version, licence, the SHA-256 of the wheel, and what each depends on;
- the packages of the distribution (dpkg), Python among them where it is the distribution's.

The same image gives the same document: it has no time and no random number.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGE = "hayloft"
DPKG_FIELDS = ("binary:Package", "Version", "Architecture", "source:Package", "source:Version")


@dataclass(frozen=True)
class DebianPackage:
    name: str
    version: str
    architecture: str
    source: str
    source_version: str


def debian_packages(listing: str) -> list[DebianPackage]:
    """From ``dpkg-query``: a line for each package, with the fields of ``DPKG_FIELDS`` between tabs."""
    found = (DebianPackage(*line.split("\t")) for line in listing.splitlines())
    # Of a foreign architecture, dpkg appends it to the name.
    return [
        DebianPackage(one.name.partition(":")[0], one.version, one.architecture, one.source, one.source_version)
        for one in found
    ]


def licence(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The SPDX expression where the package states one; otherwise its classifiers, or the first line of its text."""
    if expression := metadata.get("license_expression"):
        return [{"expression": expression}]
    prefix = "License :: OSI Approved :: "
    names = [one.removeprefix(prefix) for one in metadata.get("classifier", []) if one.startswith(prefix)]
    if not names and (text := str(metadata.get("license", "")).strip()):
        names = [text.splitlines()[0]]
    return [{"license": {"name": name}} for name in names]


def python_component(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A package of pip's report."""
    metadata = entry["metadata"]
    name, version = canonicalize_name(metadata["name"]), metadata["version"]
    reference = f"pkg:pypi/{name}@{urllib.parse.quote(version)}"
    # pip before 23.1 has one hash here, "sha256=...". The driver's wheel was built in this image, and may have none.
    archive = entry["download_info"]["archive_info"]
    digest = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        **({"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {}),
        **({"licenses": found} if (found := licence(metadata)) else {}),
    }


def debian_component(package: DebianPackage, release: Mapping[str, str]) -> dict[str, Any]:
    """A package of dpkg; ``release`` is the content of /etc/os-release."""
    quoted = (urllib.parse.quote(part, safe="") for part in (package.name, package.version))
    named = "@".join(quoted)
    distribution = f"{release['ID']}-{release['VERSION_ID']}"
    reference = f"pkg:deb/{release['ID']}/{named}?arch={package.architecture}&distro={distribution}"
    return {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "purl": reference,
        "properties": [
            {"name": "debian:source", "value": package.source},
            {"name": "debian:source-version", "value": package.source_version},
        ],
    }


def dependencies(entries: Iterable[Mapping[str, Any]], references: Mapping[str, str]) -> dict[str, set[str]]:
    """What each installed package depends on, by name: requirements whose markers hold here, with the extras that other
    packages ask for."""
    requirements = {
        canonicalize_name(entry["metadata"]["name"]): [
            Requirement(one) for one in entry["metadata"].get("requires_dist", [])
        ]
        for entry in entries
    }
    found: dict[str, set[str]] = {name: set() for name in requirements}
    waiting = [(name, "") for name in requirements]
    done = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for requirement in requirements[name]:
            needed = canonicalize_name(requirement.name)
            if needed in references and (requirement.marker is None or requirement.marker.evaluate({"extra": extra})):
                found[name].add(needed)
                waiting += [(needed, wanted) for wanted in requirement.extras]
    return found


def document(
    reports: Iterable[Mapping[str, Any]], packages: Iterable[DebianPackage], release: Mapping[str, str]
) -> dict[str, Any]:
    """The bill of materials. ``reports`` are pip's, the one with the driver itself among them."""
    entries = [entry for report in reports for entry in report["install"]]
    (driver,) = (one for one in entries if canonicalize_name(one["metadata"]["name"]) == IMAGE)
    found = [python_component(entry) for entry in entries]
    references = {component["name"]: component["bom-ref"] for component in found}
    system = {
        "type": "operating-system",
        "bom-ref": f"{release['ID']}-{release['VERSION_ID']}",
        "name": release["ID"],
        "version": release["VERSION_ID"],
    }
    version = platform.python_version()
    python = {
        "type": "application",
        "bom-ref": f"pkg:generic/python@{version}",
        "name": "python",
        "version": version,
        "purl": f"pkg:generic/python@{version}",
    }
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": IMAGE,
        "version": driver["metadata"]["version"],
        "licenses": licence(driver["metadata"]),
    }
    debian = [debian_component(package, release) for package in packages]
    graph = dependencies(entries, references)
    below = {references[name]: sorted(references[one] for one in needed) for name, needed in graph.items()}
    below["image"] = sorted([references[IMAGE], python["bom-ref"], *(one["bom-ref"] for one in (system, *debian))])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": sorted([*found, *debian, system, python], key=lambda one: str(one["bom-ref"])),
        "dependencies": [{"ref": ref, "dependsOn": needed} for ref, needed in sorted(below.items())],
    }


def with_installed_metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    """pip's report with the metadata of the packages themselves: a pip that is older than a field leaves it out, as
    Debian 12's does with the SPDX expression of the licence."""
    entries = []
    for entry in report["install"]:
        metadata = importlib.metadata.distribution(entry["metadata"]["name"]).metadata.json
        entries.append({**entry, "metadata": metadata})
    return {**report, "install": entries}


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the software bill of materials of this image.")
    parser.add_argument("reports", type=Path, nargs="+", help="what pip has installed (pip install --report)")
    reports = parser.parse_args().reports
    query = ["dpkg-query", "--show", "--showformat", "\t".join(f"${{{field}}}" for field in DPKG_FIELDS) + "\n"]
    listing = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout  # noqa: S603
    made = document(
        [with_installed_metadata(json.loads(path.read_text())) for path in reports],
        debian_packages(listing),
        platform.freedesktop_os_release(),
    )
    sys.stdout.write(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
