"""The list of decisions in ``docs/decisions/README.md``: number and title of each, as its first line says."""

from __future__ import annotations

from pathlib import Path


def table(repository: Path) -> str:
    """One line for each."""
    pages = sorted((repository / "docs" / "decisions").glob("0*.md"))
    titles = ((page.name, page.read_text().partition("\n")[0].lstrip("# ").partition(". ")) for page in pages)
    rows = "".join(f"| {number} | [{title}]({name}) |\n" for name, (number, _, title) in titles)
    return f"| | decision |\n|---|---|\n{rows}"
