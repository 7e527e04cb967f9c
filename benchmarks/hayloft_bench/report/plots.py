"""The plots of a run, each with a caption that is computed from the same figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hayloft_bench.report import number_format as wording
from hayloft_bench.report import plot_style as drawing
from hayloft_bench.report.captions import (
    cost_caption,
    epochs_caption,
    latency_caption,
    origin_caption,
    speed_caption,
    utilisation_caption,
)
from hayloft_bench.report.plot_style import Bar, Block, Draw, Line
from hayloft_bench.report.tables import utilisation_curves
from hayloft_bench.results.model import PHASES, Measurement, Phase, Results
from hayloft_bench.results.noise import Spread
from hayloft_bench.results.row_selection import (
    Case,
    by_repetition,
    cases,
    limit_of,
    middle,
    of_kind,
    phases_of,
    target_facts,
    targets_of,
    workload_facts,
    workloads_of,
)

Section = Literal["speed", "epochs", "latency", "utilisation", "cpu", "origin"]

TITLES: dict[Section, str] = {
    "speed": "Speed, against the limit",
    "epochs": "Epoch by epoch",
    "latency": "How long a sample takes",
    "utilisation": "How many accelerators stay busy",
    "cpu": "Processor time per GB",
    "origin": "Bytes from the store",
}


SLOTS = (
    *("juicefs", "rclone", "boto3", "obstore", "s3fs", "s3fs-fuse", "mountpoint-s3"),
    *("s3torchconnector", "path", "juicefs-default"),
)
"""The colour of each target, the same in all runs."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One panel. ``name`` is also its file's name."""

    section: Section
    name: str
    title: str
    caption: str
    draw: Draw
    titled: Draw
    """The same with its title in the picture, for a file of its own."""
    about: str = ""
    """What the workload reads, in words."""


def plots(results: Results) -> list[Plot]:
    """All plots that the figures give, in the order of the report."""
    found: list[Plot] = []
    for section, make in _SECTIONS.items():
        for workload in workloads_of(results):
            about = workload_facts(results, workload).title
            found += [replace(plot, about=about) for plot in make(results, workload, section)]
    return found


def write(results: Results, directory: Path, *, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Each plot as a file; the directory is made. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(results):
        for kind in formats:
            path = directory / f"{plot.name}.{kind}"
            path.write_bytes(drawing.png(plot.titled) if kind == "png" else drawing.svg(plot.titled, plot.name))
            written.append(path)
    return written


def roles(results: Results) -> dict[str, str]:
    """The colour of each target: the same in every plot of a run. Hayloft's own come first."""
    given = {name: f"h{number % 4}" for number, name in enumerate(of_kind(results, "hayloft"))}
    main = next(iter(name for name in ("hayloft", "hayloft-auto") if name in given), None)
    if main is not None:
        others = [name for name in given if name != main]
        given = {main: "h0", **{name: f"h{1 + number % 3}" for number, name in enumerate(others)}}
    given |= {name: "limit" for name in of_kind(results, "limit")}
    others = sorted(name for name in targets_of(results) if name not in given)
    given |= {name: f"p{SLOTS.index(name)}" for name in others if name in SLOTS}
    free = [f"p{number}" for number in range(drawing.PEER_SLOTS) if f"p{number}" not in given.values()] or ["p0"]
    unknown = [name for name in others if name not in SLOTS]
    return given | {name: free[number % len(free)] for number, name in enumerate(unknown)}


def _plot(
    section: Section, workload: str, title: str, caption: str, make: Callable[[str], Draw], suffix: str = ""
) -> Plot:
    name = "-".join(part for part in (section, workload, suffix) if part)
    return Plot(
        section, name, title, caption, make(""), make(f"{title}: {TITLES[section][0].lower()}{TITLES[section][1:]}")
    )


def bar_blocks(
    results: Results,
    workload: str,
    phases: Sequence[Phase],
    measure: str,
    shown: Callable[[float], str],
    *,
    factor: float = 1.0,
) -> list[Block]:
    """A block per phase, its fastest (or, for costs, cheapest) bars first; the limit is a line and no bar. Values are
    multiplied by ``factor``."""
    grouped, colours, blocks = cases(results), roles(results), []
    limit = limit_of(results)
    for phase in phases:
        bars = []
        for target in targets_of(results):
            rows = grouped.get(Case(workload, target, phase), [])
            values = [factor * value for value in by_repetition(rows, measure).values()]
            if values and target != limit:
                spread, ours = Spread.of(values), target_facts(results, target).kind == "hayloft"
                text = shown(spread.median)
                bars.append(Bar(target, colours[target], spread.median, spread.lower, spread.upper, text, ours))
        line = middle(grouped.get(Case(workload, limit, phase), []), measure) if limit else None
        if bars:
            bars.sort(key=lambda bar: bar.value, reverse=measure in ("speed", "bytes_per_s"))
            blocks.append(Block(phase, bars, None if line is None else factor * line))
    return blocks


def _speed(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    blocks = bar_blocks(results, workload, phases_of(results, workload), "speed", wording.significant)
    if blocks:
        unit = "samples per second" if _has_samples(results, workload) else "bytes per second"
        yield _plot(
            section, workload, workload, speed_caption(results, workload),
            lambda title: drawing.bars(blocks, unit, limit_label="plain local files", title=title),
        )  # fmt: skip


def _has_samples(results: Results, workload: str) -> bool:
    return any(row.samples_per_s for row in results.measurements if row.workload == workload)


def _epochs(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    grouped, colours = cases(results), roles(results)
    rows = [row for case, some in grouped.items() if case.workload == workload for row in some]
    places = sorted({(PHASES.index(row.phase), row.epoch) for row in rows})
    if len(places) < 2:
        return
    drawn = []
    for number, target in enumerate(targets_of(results)):
        points = []
        for x, (phase, epoch) in enumerate(places):
            some = [row for row in grouped.get(Case(workload, target, PHASES[phase]), []) if row.epoch == epoch]
            value = middle(some, "speed")
            if value is not None:
                points.append((float(x), value))
        if points:
            ours = target_facts(results, target).kind == "hayloft"
            drawn.append(Line(target, colours[target], points, ours, 0 if ours else number))
    ticks = [f"{PHASES[phase]}\n{epoch}" for phase, epoch in places]
    unit = "samples per second" if _has_samples(results, workload) else "bytes per second"
    yield _plot(
        section, workload, workload, epochs_caption(results, workload),
        lambda title: drawing.lines(drawn, "phase and epoch", unit, ticks=ticks, title=title),
    )  # fmt: skip


def _latency(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    for phase in (
        phase for phase in phases_of(results, workload) if phase in ("cold", "hot", "small-cache", "restart")
    ):
        drawn = _distributions(results, workload, phase)
        if drawn:
            title = f"{workload}, {phase}"
            yield _plot(
                section, workload, title, latency_caption(results, workload, phase),
                lambda title, drawn=drawn: drawing.lines(  # type: ignore[misc]  # binds the value of this iteration
                    drawn, "time of a sample", "share of samples", log_x=True, percent=True, with_points=False,
                    title=title,
                ),
                suffix=phase,
            )  # fmt: skip


def _distributions(results: Results, workload: str, phase: Phase) -> list[Line]:
    grouped, colours, drawn = cases(results), roles(results), []
    for number, target in enumerate(targets_of(results)):
        rows = grouped.get(Case(workload, target, phase), [])
        points = distribution(rows)
        if points:
            ours = target_facts(results, target).kind == "hayloft"
            drawn.append(Line(target, colours[target], points, ours, 0 if ours else number))
    return drawn


def distribution(rows: Sequence[Measurement], most: int = 200) -> list[tuple[float, float]]:
    """Latency and the share of samples that took no longer, over all rows together; at most ``most`` points."""
    values = sorted(value for row in rows for value in row.sample_latencies_s if value > 0)
    if len(values) < 2:
        return []
    picked = sorted({round(step * (len(values) - 1) / (most - 1)) for step in range(most)})
    return [(values[index], index / (len(values) - 1)) for index in picked]


def _utilisation(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    curves, colours = utilisation_curves(results), roles(results)
    for phase in phases_of(results, workload):
        drawn = []
        for number, target in enumerate(targets_of(results)):
            curve = curves.get(Case(workload, target, phase), [])
            if curve:
                ours = target_facts(results, target).kind == "hayloft"
                points = [(float(count), busy) for count, busy in curve]
                drawn.append(Line(target, colours[target], points, ours, 0 if ours else number))
        if drawn:
            threshold = workload_facts(results, workload).threshold
            level = (threshold, f"fed: {wording.percent(threshold)}") if threshold else None
            title = f"{workload}, {phase}"
            yield _plot(
                section, workload, title, utilisation_caption(results, workload, phase),
                lambda title, drawn=drawn, level=level: drawing.lines(  # type: ignore[misc]  # as above
                    drawn, "emulated accelerators", "utilisation", whole_x=True, percent=True, level=level, title=title
                ),
                suffix=phase,
            )  # fmt: skip


def _cpu(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    blocks = bar_blocks(results, workload, phases_of(results, workload), "cpu_s_per_gb", wording.significant)
    if blocks:
        yield _plot(
            section, workload, workload, cost_caption(results, workload),
            lambda title: drawing.bars(
                blocks, "CPU seconds per GB, readers and target together", limit_label="plain local files", title=title
            ),
        )  # fmt: skip


def _origin(results: Results, workload: str, section: Section) -> Iterator[Plot]:
    phases = [phase for phase in phases_of(results, workload) if phase in ("cold", "small-cache")]
    blocks = bar_blocks(results, workload, phases, "read_amplification", lambda value: f"{value:.2f}")
    blocks = [Block(block.heading, block.bars, 1.0) for block in blocks if any(bar.value for bar in block.bars)]
    if blocks:
        yield _plot(
            section, workload, workload, origin_caption(results, workload),
            lambda title: drawing.bars(
                blocks, "bytes from the store ÷ bytes that the epoch needs", limit_label="what is needed", title=title
            ),
        )  # fmt: skip


_SECTIONS: dict[Section, Callable[[Results, str, Section], Iterator[Plot]]] = {
    "speed": _speed,
    "epochs": _epochs,
    "latency": _latency,
    "utilisation": _utilisation,
    "cpu": _cpu,
    "origin": _origin,
}
