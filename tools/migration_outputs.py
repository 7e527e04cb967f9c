"""What ``hayloft migrate`` prints of ``docs/migration-example.yaml``, for ``docs/migration.md``."""

from __future__ import annotations

from pathlib import Path

from csi_driver.cli.migrate_command import report_lines
from csi_driver.cli.migration.manifest_rewriting import Rewriting
from csi_driver.cli.migration.volume_translation import Supplement
from csi_driver.cli.migration.yaml_documents import read_documents, written

EXAMPLE = "docs/migration-example.yaml"


def report(repository: Path) -> str:
    """Standard error."""
    lines = report_lines(_rewritten(repository)[0].reports)
    return "".join(f"{line}\n" for line in ["```console", f"$ hayloft migrate {EXAMPLE} >new.yaml", *lines, "```"])


def manifest(repository: Path) -> str:
    """Standard output."""
    return f"```yaml\n{_rewritten(repository)[1]}```\n"


def _rewritten(repository: Path) -> tuple[Rewriting, str]:
    text = (repository / EXAMPLE).read_text()
    documents = read_documents(EXAMPLE, text.encode())
    rewriting = Rewriting(Supplement())
    rewriting.rewrite(documents)
    return rewriting, written(documents, text)
