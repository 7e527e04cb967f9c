"""``report.html``: one self-contained file with the plots, the goals, the settings and every row."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from hayloft_bench.distributed.merged_view import ranks_rows
from hayloft_bench.report import number_format as wording
from hayloft_bench.report import plot_style as drawing
from hayloft_bench.report import plots
from hayloft_bench.report.report_page import page
from hayloft_bench.report.tenants_table import HEADS as TENANTS_HEADS
from hayloft_bench.report.tenants_table import NOTE as TENANTS_NOTE
from hayloft_bench.report.tenants_table import NUMBERS as TENANTS_NUMBERS
from hayloft_bench.report.tenants_table import TITLE as TENANTS_TITLE
from hayloft_bench.report.tenants_table import tenant_lines
from hayloft_bench.results.goals import Goal, goals
from hayloft_bench.results.model import Measurement, Results
from hayloft_bench.results.noise import notes
from hayloft_bench.results.row_selection import invalid, target_facts, targets_of, workloads_of
from hayloft_bench.results.tenants import ATTACKS

Cell = tuple[str, str | float | None]
"""What is shown, and the value that it is sorted by; None: nothing, sorted last."""


def write_html(results: Results, path: Path) -> Path:
    """Replaces the file at once; its directory is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(html(results))
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def html(results: Results) -> str:
    drawn = plots.plots(results)
    sections = [
        _head(results),
        _navigation(drawn),
        _goals(results),
        _tenants(results),
        *(_panels(section, [plot for plot in drawn if plot.section == section]) for section in plots.TITLES),
        _ranks(results),
        _invalid(results),
        _remarks(results),
        _machine(results),
        _settings(results),
        _rows(results),
    ]
    return page(f"hayloft bench {escape(results.run_id)}", "\n".join(section for section in sections if section))


def _head(results: Results) -> str:
    rows = results.measurements
    begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min((row.started_at for row in rows), default=0)))
    valid = sum(row.valid for row in rows)
    colours = plots.roles(results)
    legend = "".join(
        f'<span><i class="dot" style="background: var(--{colours[name]})"></i>'
        f"{escape(name)}: {escape(target_facts(results, name).title)}</span>"
        for name in targets_of(results)
    )
    repetitions = len({row.repetition for row in rows if row.valid})
    counts = (
        f"{_count(len(workloads_of(results)), 'workload')}, {_count(len(targets_of(results)), 'target')}, "
        f"{_count(repetitions, 'repetition')}: {_count(valid, 'measurement')} that count"
        f"{f', {len(rows) - valid} that do not' if valid < len(rows) else ''}."
    )
    return (
        f"<h1>How fast training reads</h1>\n<p class=quiet>hayloft bench, run {escape(results.run_id)}, {begun}, "
        f"scale {results.sizes.scale:g}</p>\n<p>{counts} Bars are medians; the thin line at a bar's end spans the "
        f"quartiles of the repetitions; the dashed line is the limit.</p>\n<p class=legend>{legend}</p>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _navigation(drawn: Sequence[plots.Plot]) -> str:
    present = [section for section in plots.TITLES if any(plot.section == section for plot in drawn)]
    links = [f'<a href="#{section}">{plots.TITLES[section]}</a>' for section in present]
    return f"<nav>{' '.join(links)} <a href='#rows'>All rows</a></nav>"


def _panels(section: plots.Section, drawn: Sequence[plots.Plot]) -> str:
    if not drawn:
        return ""
    figures = [
        f"<figure><h3>{escape(plot.title)}</h3><small>{escape(plot.about)}</small>"
        f"{drawing.inline_svg(plot.draw, plot.name, plot.caption)}"
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in drawn
    ]
    return f'<h2 id="{section}">{plots.TITLES[section]}</h2>\n<div class="panels">\n{"".join(figures)}\n</div>'


def _goals(results: Results) -> str:
    found = sorted((goal for goal in goals(results) if goal.outcome), key=lambda goal: goal.wording)
    if not found:
        return ""
    held = sum(goal.outcome == "holds" for goal in found)
    rows = [_goal_cells(goal) for goal in found]
    heads = ("goal", "workload", "phase", "against", "wanted", "is", "")
    return (
        f'<h2 id="goals">The goals</h2>\n<p>{held} of {len(found)} hold. A value near its bound that comes from too '
        f"few or too scattered repetitions is unsure.</p>\n{_table(heads, rows, numbers=(4, 5), wide=(0,))}"
    )


def _goal_cells(goal: Goal) -> list[str]:
    sign = "≥" if goal.at_least else "≤"
    value = wording.NOTHING if goal.value is None else f"{goal.value:.3f}"
    words = [goal.wording, goal.workload, goal.phase, goal.against, f"{sign} {goal.bound:g}", value]
    return [*map(escape, words), f'<span class="{goal.outcome}">{goal.outcome}</span>']


def _tenants(results: Results) -> str:
    lines = tenant_lines(results)
    if not lines:
        return ""
    cells = [[escape(cell) for cell in line] for line in lines]
    about = "".join(f"<li>{escape(name)}: {escape(what)}</li>" for name, what in ATTACKS.items())
    return (
        f'<h2 id="tenants">While another tenant attacks</h2>\n<p>{escape(TENANTS_TITLE)}; {escape(TENANTS_NOTE)}.</p>\n'
        f"{_table(TENANTS_HEADS, cells, numbers=TENANTS_NUMBERS, wide=())}\n<ul>{about}</ul>"
    )


def _ranks(results: Results) -> str:
    rows = ranks_rows(results)
    if not rows:
        return ""
    heads = (
        "workload",
        "target",
        "phase",
        "ranks",
        "together, MB/s",
        "slowest ÷ median time",
        "slowest rank",
        "shares",
    )
    cells = [[escape(cell) for cell in row] for row in rows]
    return f"<h2>Many ranks</h2>\n{_table(heads, cells, numbers=(3, 4, 5, 6), wide=(7,))}"


def _invalid(results: Results) -> str:
    found: dict[tuple[str, str, str, str], int] = {}
    for row in invalid(results):
        key = (row.workload, row.target, row.phase, row.reason or "no reason was given")
        found[key] = found.get(key, 0) + 1
    if not found:
        return ""
    rows = [[*map(escape, key[:3]), str(count), escape(key[3])] for key, count in found.items()]
    heads = ("workload", "target", "phase", "rows", "why")
    return f"<h2>What does not count, and why</h2>\n{_table(heads, rows, numbers=(3,), wide=(4,))}"


def _remarks(results: Results) -> str:
    found = [*results.notes, *(note for note in notes(results) if note not in results.notes)]
    items = "".join(f"<li>{escape(note)}</li>" for note in found)
    return f"<h2>To know when reading this</h2>\n<ul>{items}</ul>" if items else ""


def _machine(results: Results) -> str:
    machine = results.machine
    facts = {
        "kernel": machine.kernel,
        "processors": str(machine.processors),
        "memory": wording.size(machine.memory_bytes),
        "Python": machine.python,
        "path to the store": machine.network,
        "command": " ".join(results.command),
        "seed": str(results.sizes.seed),
        **machine.versions,
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<h2>Machine and versions</h2>\n<dl class="facts">{items}</dl>'


def _settings(results: Results) -> str:
    rows = [
        [escape(target), f"<code>{escape(setting)}</code>", escape(reason)]
        for target, settings in results.settings.items()
        for setting, reason in settings.items()
    ]
    if not rows:
        return ""
    return f"<h2>Settings of each target</h2>\n{_table(('target', 'setting', 'why'), rows, wide=(1, 2))}"


def _number(name: str, shown: Callable[[float | None], str]) -> Callable[[Measurement], Cell]:
    return lambda row: (shown(getattr(row, name)), getattr(row, name))


COLUMNS: dict[str, Callable[[Measurement], Cell]] = {
    "workload": lambda row: (row.workload, row.workload),
    "target": lambda row: (row.target, row.target),
    "phase": lambda row: (row.phase, row.phase),
    "repetition": _number("repetition", lambda value: f"{value:.0f}"),
    "epoch": _number("epoch", lambda value: f"{value:.0f}"),
    "rank": _number("rank", lambda value: "all" if value == -1 else f"{value:.0f}"),
    "accelerators": _number("accelerators", lambda value: wording.NOTHING if value is None else f"{value:.0f}"),
    "utilisation": _number("utilisation", wording.percent),
    "seconds": _number("seconds", wording.significant),
    "samples/s": _number("samples_per_s", wording.significant),
    "MB/s": lambda row: (
        (wording.significant(row.bytes_per_s / 1e6), row.bytes_per_s) if row.bytes_per_s else (wording.NOTHING, None)
    ),
    "p50": _number("sample_p50_s", wording.seconds),
    "p95": _number("sample_p95_s", wording.seconds),
    "p99": _number("sample_p99_s", wording.seconds),
    "first batch": _number("first_batch_s", wording.seconds),
    "CPU s/GB": _number("cpu_s_per_gb", wording.significant),
    "reader memory": _number("peak_reader_bytes", wording.size),
    "target memory": _number("peak_target_bytes", wording.size),
    "origin bytes": _number("origin_bytes", wording.size),
    "requests": _number("origin_requests", lambda value: wording.NOTHING if value is None else f"{value:,.0f}"),
    "origin ÷ need": _number("read_amplification", wording.significant),
    "hit ratio": _number("hit_ratio", wording.percent),
    "money": _number("money_per_epoch", wording.significant),
    "why it does not count": lambda row: (row.reason, row.reason),
}
WORDS = ("workload", "target", "phase", "why it does not count")


def _rows(results: Results) -> str:
    """All rows; columns in which nothing stands are left out."""
    rows = results.measurements
    names = [
        name
        for name, cell in COLUMNS.items()
        if any(cell(row)[1] not in (None, "") for row in rows)
        and (name != "rank" or any(row.ranks > 1 for row in rows))
    ]
    cells = [[COLUMNS[name](row) for name in names] for row in rows]
    classes = ["" if row.valid else "invalid" for row in rows]
    ours = [target_facts(results, row.target).kind == "hayloft" for row in rows]
    classes = [f"{one} ours".strip() if mine else one for one, mine in zip(classes, ours, strict=True)]
    heads = "".join(
        f'<th{"" if name in WORDS else " class=number"}><button type="button">{escape(name)}</button></th>'
        for name in names
    )
    body = "".join(
        f"<tr{f' class={chr(34)}{css}{chr(34)}' if css else ''}>{_sortable_cells(names, line)}</tr>\n"
        for css, line in zip(classes, cells, strict=True)
    )
    return (
        '<h2 id="rows">All rows</h2>\n<p class=quiet>A click on a heading sorts. The same rows, with more columns, are '
        "in results.parquet.</p>\n"
        f'<div class="scroll" tabindex="0"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _sortable_cells(names: Sequence[str], line: Iterable[Cell]) -> str:
    cells = []
    for name, (shown, value) in zip(names, line, strict=True):
        css = "wide" if name == WORDS[-1] else "" if name in WORDS else "number"
        sort = "" if name in WORDS else f' data-value="{"" if value is None else value}"'
        cells.append(f"<td{f' class={css}' if css else ''}{sort}>{escape(shown)}</td>")
    return "".join(cells)


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), wide: Sequence[int] = ()

) -> str:  # fmt: skip
    """Cells are HTML already."""

    def css(column: int) -> str:
        name = "number" if column in numbers else "wide" if column in wide else ""
        return f" class={name}" if name else ""

    head = "".join(f"<th{css(column)}>{escape(name)}</th>" for column, name in enumerate(heads))
    body = "".join(
        f"<tr>{''.join(f'<td{css(column)}>{cell}</td>' for column, cell in enumerate(row))}</tr>\n" for row in rows
    )

    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
