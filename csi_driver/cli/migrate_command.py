"""``hayloft migrate``: the manifest on standard output, and what has become of each option on standard error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from csi_driver.cli import complain
from csi_driver.cli import options as flags
from csi_driver.cli.exit_codes import ExitCode
from csi_driver.cli.flag import Flag, Positional
from csi_driver.cli.migration.manifest_rewriting import Report, Rewriting
from csi_driver.cli.migration.translation_rules import Outcome
from csi_driver.cli.migration.volume_translation import PEERS, Supplement
from csi_driver.cli.migration.yaml_documents import read_documents, written
from csi_driver.cli.text_tables import Column, table
from csi_driver.model.errors import InvalidParameter

Manifest = Annotated[str, Positional("A file of manifests in YAML; - reads standard input.")]
GoogleWorkloadProvider = Annotated[
    str,
    Flag(
        "--google-workload-provider",
        "googleWorkloadProvider of inline volumes that are read with the identity of their pod.",
        "HAYLOFT_GOOGLE_WORKLOAD_PROVIDER",
    ),
]

_COLUMNS = (Column("OPTION"), Column("OUTCOME"), Column("HAYLOFT"))


def migrate(
    file: Manifest,
    store_endpoint: flags.StoreEndpoint = None,
    region: flags.Region = None,
    google_workload_provider: GoogleWorkloadProvider = "",
) -> int:
    """Rewrite manifests of other CSI drivers for object stores as manifests of this one.

    Of Mountpoint for Amazon S3, Cloud Storage FUSE and csi-s3. Standard error says what has become of each option."""
    name = "standard input" if file == "-" else file
    data = _read(file)
    try:
        documents = read_documents(name, data)
    except ImportError:
        complain("migrate: needs the package ruamel.yaml, which is not installed; pip install 'hayloft[migrate]'")
        return ExitCode.FAILED
    rewriting = Rewriting(Supplement(store_endpoint or "", region or "", google_workload_provider))
    rewriting.rewrite(documents)
    sys.stdout.write(written(documents, data.decode("utf-8-sig")))
    sys.stdout.flush()
    sys.stderr.write("".join(f"{line}\n" for line in report_lines(rewriting.reports)))
    if not rewriting.reports:
        complain(f"{name} has no volume of {', '.join(PEERS.values())}")
    return ExitCode.SUCCESS if rewriting.reports and not any(map(_needs_work, rewriting.reports)) else ExitCode.FINDINGS


def report_lines(reports: list[Report]) -> list[str]:
    """A table for each object."""
    lines = []
    for report in reports:
        lines += [f"{report.title}{f' ({report.product})' if report.product else ''}"]
        if report.refusal:
            lines += [f"  unchanged: {report.refusal}"]
        if report.rows:
            rows = [(row.option, str(row.outcome), row.text.replace("`", "")) for row in report.rows]
            lines += [f"  {line}" for line in table(_COLUMNS, rows, 0)]
    return lines


def _needs_work(report: Report) -> bool:
    outcomes = {row.outcome for row in report.rows}
    return bool(report.refusal or outcomes & {Outcome.IMPOSSIBLE, Outcome.UNKNOWN})


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise InvalidParameter("FILE", file, "a file of manifests, or - for standard input", reason) from None
