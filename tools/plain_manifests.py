"""Renders the manifests of ``deploy/kubernetes`` from the chart: ``python -m tools.plain_manifests [--check]``.

``--check`` writes nothing and exits with 1 if a manifest is not what the chart says. It does without Helm, too: beside
the manifests lies a list of digests, of what they were rendered from and of themselves (``sha256sum --check`` reads
it). A chart or manifest that was edited without rendering differs from the list.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = Path("deploy/chart")
MANIFESTS = Path("deploy/kubernetes")
DIGESTS = MANIFESTS / "rendered.sha256"
BUILT_HELM = Path(".tools/bin/helm")
"""``.ci/helm`` builds it."""

KUBERNETES = "1.34"
"""The oldest version that the chart allows: plain manifests have no field that it does not know."""


def find_helm(repository: Path = REPOSITORY) -> str | None:
    """The pinned Helm, or None. Others render other whitespace, and word errors otherwise."""
    built = repository / BUILT_HELM
    return str(built) if built.exists() else None


def rendered(helm: str, repository: Path = REPOSITORY) -> dict[str, str]:
    """Manifests by the name of their file. Runs Helm; raises subprocess.CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory(prefix="hayloft-manifests-") as folder:
        subprocess.run(  # noqa: S603  # no part of it is input
            [
                *(helm, "template", "hayloft", str(CHART), "--namespace", "hayloft", "--kube-version", KUBERNETES),
                *("--values", str(CHART / "values-plain.yaml"), "--output-dir", folder),
            ],
            cwd=repository,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        paths = sorted(Path(folder).rglob("*.yaml"))
        return {path.name: _without_headers(path.read_text()) for path in paths}


def _without_headers(text: str) -> str:
    """Helm begins each object with a separator and the name of its template."""
    objects = re.split(r"^---\n# Source: .*\n", text, flags=re.MULTILINE)
    return "---\n".join(one.strip("\n") + "\n" for one in objects if one.strip())


def _sources(repository: Path) -> list[Path]:
    chart = repository / CHART
    return [
        chart / "Chart.yaml",
        chart / "values.yaml",
        chart / "values-plain.yaml",
        *sorted(chart.glob("templates/*.*")),
        *sorted(chart.glob("files/*.*")),
    ]


def _manifests(repository: Path) -> list[Path]:
    return sorted({*(repository / MANIFESTS).glob("*.yaml")} - {repository / MANIFESTS / "kustomization.yaml"})


def digests(repository: Path = REPOSITORY) -> str:
    """The list of digests as it should be, one ``digest  path`` a line."""
    paths = [*_sources(repository), *_manifests(repository)]
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(repository)}\n" for path in paths
    )


def differences(repository: Path = REPOSITORY, helm: str | None = None) -> list[str]:
    """Paths that are not what the chart says, by the digests and, with a Helm, by rendering."""
    recorded = (repository / DIGESTS).read_text() if (repository / DIGESTS).exists() else ""
    differing = {line.split("  ")[1] for line in set(digests(repository).splitlines()) ^ set(recorded.splitlines())}
    if helm:
        wanted = {str(MANIFESTS / name): text for name, text in rendered(helm, repository).items()}
        present = {str(path.relative_to(repository)): path.read_text() for path in _manifests(repository)}
        differing |= {name for name, _ in wanted.items() ^ present.items()}
    return sorted(differing)


def write(helm: str, repository: Path = REPOSITORY) -> None:
    manifests = rendered(helm, repository)
    for path in _manifests(repository):
        if path.name not in manifests:
            path.unlink()
    for name, text in manifests.items():
        (repository / MANIFESTS / name).write_text(text)
    (repository / DIGESTS).write_text(digests(repository))


def main() -> int:
    parser = argparse.ArgumentParser(description="Renders deploy/kubernetes from deploy/chart.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a manifest is not current")
    check = parser.parse_args().check
    helm = find_helm()
    if check:
        differing = differences(helm=helm)
        for path in differing:
            sys.stderr.write(f"{path}: {MANIFESTS} was not rendered from this: run make manifests\n")
        return 1 if differing else 0
    if helm is None:
        sys.stderr.write("Helm is missing: .ci/helm builds it\n")
        return 1
    write(helm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
