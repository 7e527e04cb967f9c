"""Writes what is generated from the source, tables of the docs and lists of the chart's schema:
``python -m tools.generated_tables [--check]``.

``--check`` writes nothing and exits with 1 if a page is not what the source says.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tools import (
    chart_values,
    command_outputs,
    decision_list,
    lock_table,
    metric_rows,
    migration_outputs,
    migration_tables,
    parameter_table,
    promise_table,
    storage_costs,
)

REPOSITORY = Path(__file__).resolve().parents[1]

TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "locks": ("docs/concurrency.md", lock_table.table),
    "promises": ("docs/semantics.md", promise_table.table),
    "parameters": ("docs/parameters.md", parameter_table.table),
    "values": ("deploy/chart/README.md", chart_values.table),
    "metrics": ("docs/monitoring.md", metric_rows.table),
    "exit codes": ("docs/operations.md", command_outputs.exit_codes),
    "hayloft status": ("docs/operations.md", command_outputs.status),
    "hayloft volumes": ("docs/operations.md", command_outputs.volumes),
    "hayloft ls": ("docs/operations.md", command_outputs.listing),
    "hayloft verify": ("docs/operations.md", command_outputs.verification),
    "hayloft top": ("docs/operations.md", command_outputs.top),
    "hayloft doctor": ("docs/operations.md", command_outputs.doctor),
    "hayloft explain": ("docs/operations.md", command_outputs.explanation),
    "decisions": ("docs/decisions/README.md", decision_list.table),
    "storage costs": ("docs/which-storage.md", storage_costs.table),
    "storage rates": ("docs/which-storage.md", storage_costs.rates),
    "storage prices": ("docs/which-storage.md", storage_costs.sources),
    "hayloft migrate": ("docs/migration.md", migration_outputs.report),
    "migrated manifest": ("docs/migration.md", migration_outputs.manifest),
    **{name: ("docs/migration.md", table) for name, table in migration_tables.TABLES.items()},
}
"""By the name between the markers of a page: the page, and what writes the table."""

FILES: dict[str, Callable[[Path], str]] = {
    "deploy/chart/values.schema.json": chart_values.schema,
    # Helm reads no file outside of its chart.
    "deploy/chart/files/rules.yml": lambda repository: (repository / "deploy/monitoring/rules.yml").read_text(),
    "deploy/chart/files/dashboard.json": lambda repository: (
        repository / "deploy/monitoring/dashboard.json"
    ).read_text(),
}
"""Files that are generated, or a part of them, and what writes them."""


def with_section(page: str, name: str, body: str) -> str:
    """The page with ``body`` between its markers of that name. Raises ValueError if it has no such markers."""
    begin, end = f"<!-- generated: {name} (make generated) -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page needs one pair of the lines {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{body}{end}", page)


def generated(page: str) -> str:
    """What a page or file should hold."""
    if page in FILES:
        return FILES[page](REPOSITORY)
    text = (REPOSITORY / page).read_text()
    for name, (holder, table) in TABLES.items():
        if holder == page:
            text = with_section(text, name, table(REPOSITORY))
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes what is generated from the source.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is not current")
    check = parser.parse_args().check
    stale = []
    try:
        for page in [*dict.fromkeys(page for page, _ in TABLES.values()), *FILES]:
            path = REPOSITORY / page
            new = generated(page)
            if new != path.read_text():
                stale.append(page)
                if not check:
                    path.write_text(new)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for page in stale:
        sys.stderr.write(f"{page} is not current: run make generated\n" if check else f"{page}: written\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
