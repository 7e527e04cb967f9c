"""The report stands alone, says what the figures say, and draws each target in one colour."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hayloft_bench.report import plot_style as drawing
from hayloft_bench.report import plots, report, report_page
from hayloft_bench.results.model import ALL_RANKS, Results
from hayloft_bench.targets import TARGETS
from tests.support.bench_results import made_up, measurement, results_of

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Tags(HTMLParser):
    """Every element is closed in order; ids and addresses are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up()


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return report.html(results)


def test_the_page_asks_for_nothing_outside_of_itself(page: str) -> None:
    for tag, attributes in tags(page).seen:
        assert tag not in ("link", "img", "iframe", "object", "image")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.findall(r"url\((?!#)", page)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_id_is_there_once_and_every_reference_leads_to_one(page: str) -> None:
    seen = tags(page).seen
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="|href=\'|url\()#([\w-]+)', page))
    assert wanted
    assert wanted <= set(ids)


def test_colours_follow_the_reader_between_light_and_dark(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert not set(drawing.MARKERS.values()) & set(re.findall(r"#[0-9a-f]{6}", page))
    for role in ("h0", "p0", "ink", "grid", "limit"):
        assert f"var(--{role})" in page
    assert 'name="viewport"' in page


def test_every_plot_has_a_caption_that_a_screen_reader_reads(results: Results, page: str) -> None:
    drawn = plots.plots(results)
    assert {plot.section for plot in drawn} == set(plots.TITLES)
    assert page.count("<figure>") == len(drawn)
    assert page.count('role="img"') == len(drawn)
    assert all(plot.caption.endswith(".") for plot in drawn)


def test_captions_are_computed_from_the_figures(results: Results) -> None:
    def caption(of: Results, name: str) -> str:
        return next(plot.caption for plot in plots.plots(of) if plot.name == name)

    slow = made_up(faster=0.5)
    assert "97 % (hot) of local files" in caption(results, "speed-imagenet")
    assert "times the best mounted peer, JuiceFS" in caption(results, "speed-imagenet")
    assert re.search(r"4[89] % \(hot\) of local files", caption(slow, "speed-imagenet"))
    assert "keeps 4 of up to 8 accelerators" in caption(results, "utilisation-imagenet-hot")
    assert "the most is 1.30, by JuiceFS" in caption(results, "origin-imagenet")
    assert "0.350 CPU seconds per GB; JuiceFS, the cheapest" in caption(results, "cpu-imagenet")


def test_the_caption_of_a_noisy_figure_says_so() -> None:
    rows = [
        measurement(name, repetition=number, samples_per_s=speed * factor)
        for number, speed in enumerate((100, 300, 500))
        for name, factor in (("hayloft", 0.9), ("plain", 1.0))
    ]
    (plot,) = (one for one in plots.plots(results_of(rows)) if one.section == "speed")
    assert plot.caption.endswith("Its repetitions vary too much when hot.")


def test_a_target_has_the_same_colour_in_every_plot_and_hayloft_the_first(results: Results) -> None:
    given = plots.roles(results)
    assert given["hayloft"] == "h0"
    assert given["plain"] == "limit"
    assert len(set(given.values())) == len(given)
    fewer = replace(results, measurements=tuple(row for row in results.measurements if row.target != "juicefs"))
    assert plots.roles(fewer).items() <= given.items()


def test_every_target_that_can_be_measured_together_has_a_colour_of_its_own() -> None:
    targets = [name for name, target in TARGETS.items() if target.kind not in ("limit", "hayloft")]
    results = results_of([measurement(target="juicefs")])
    rows = [replace(results.measurements[0], target=name) for name in [*targets, "one-more"]]
    given = plots.roles(replace(results, measurements=tuple(rows[:-1])))
    assert len(set(given.values())) == len(targets)
    assert plots.roles(replace(results, measurements=tuple(rows)))["one-more"] in drawing.LIGHT


def contrast(one: str, other: str) -> float:
    """As WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colours", "card"), [(drawing.LIGHT, "#fafaf9"), (drawing.DARK, "#262220")])
def test_colours_stand_out_from_their_background(colours: dict[str, str], card: str) -> None:
    assert card in report_page.STYLE
    for role, colour in colours.items():
        if role != "grid":
            assert contrast(colour, card) >= (4.5 if role in ("ink", "muted") else 3.0), role


def test_invalid_rows_stand_with_their_reason_and_are_struck(page: str) -> None:
    assert "it ended by itself in the middle of the epoch (made up)" in page
    assert 'class="invalid"' in page


def test_all_rows_machine_settings_and_goals_are_there(results: Results, page: str) -> None:
    body = page[page.index('id="rows"') :]
    assert body.count("<tr") == len(results.measurements) + 1
    assert "0.0-made-up" in page
    assert "--cache-size=1G" in page
    assert "made up: the cache holds the dataset" in page
    assert 'class="holds"' in page
    assert "These figures are made up for a test." in page


def test_text_from_outside_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    row = replace(measurement(target="juicefs"), target=evil, valid=False, reason=evil)
    given = replace(results_of([row, measurement()]), run_id=evil, notes=(evil,), settings={evil: {evil: evil}})
    page = report.html(given)
    tags(page)
    assert evil not in page


def test_results_without_anything_that_counts_still_make_a_page(tmp_path: Path) -> None:
    rows = [replace(measurement(), valid=False, reason="it did not start", samples_per_s=None)]
    for given in (results_of(rows), results_of([])):
        tags(report.write_html(given, tmp_path / "deep" / "report.html").read_text())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_ranks_are_shown_together_with_who_waits_for_whom() -> None:
    rows = [
        replace(measurement(), ranks=3, rank=rank, seconds=seconds, bytes=1000 * (rank + 1))
        for rank, seconds in enumerate((1.0, 1.0, 2.0))
    ]
    rows.append(replace(measurement(), ranks=3, rank=ALL_RANKS, seconds=2.0, bytes_per_s=5e6))
    page = report.html(results_of(rows))
    assert "Many ranks" in page
    assert "0: 17 %, 1: 33 %, 2: 50 %" in page
    assert "<td class=number>2.00</td>" in page


def test_plots_are_written_as_files_that_stand_alone(tmp_path: Path) -> None:
    few = replace(made_up(repetitions=1), measurements=tuple(
        row for row in made_up(repetitions=1).measurements if row.workload == "webdataset"
    ))  # fmt: skip
    written = plots.write(few, tmp_path / "plots")
    assert {path.suffix for path in written} == {".svg", ".png"}
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - written just now
            assert "var(--" not in path.read_text()
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_results_give_the_same_page(results: Results, page: str) -> None:
    assert report.html(results) == page


def test_a_distribution_has_few_points_and_rises() -> None:
    rows = [measurement(repetition=number) for number in range(9)]
    points = plots.distribution(rows, most=50)
    assert len(points) == 50
    assert points == sorted(points)
    assert (points[0][1], points[-1][1]) == (0.0, 1.0)
    assert plots.distribution([replace(rows[0], sample_latencies_s=())]) == []
