"""What people see of a run: tables, plots and the page, with labels that try to break them."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from dopd_loadgen.model import Phase, RoleCount
from dopd_loadgen.report.canvas import INK, inline_svg, png, svg
from dopd_loadgen.report.comparison import comparison, comparison_cells, names
from dopd_loadgen.report.html import page
from dopd_loadgen.report.metrics import summarise
from dopd_loadgen.report.notes import notes
from dopd_loadgen.report.plots import pictures
from dopd_loadgen.report.result import Stored, load, store
from dopd_loadgen.report.samples import parts_s, samples
from dopd_loadgen.report.table import show
from dopd_loadgen.report.wording import percent, summary_rows
from tests.load_runs import answer, failed, random_run, run_of

NASTY = "_a <b>&\"'$x$ [bold]y[/bold] $\\frac$ é"
VOID = {"meta", "path", "use", "rect", "br"}


def shown(stored: list[Stored], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(stored, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Checked(HTMLParser):
    """Fails on a tag that is not closed in order; keeps text, tags and what is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# ------------------------------------------------------------------------------------------------------------ tables


def test_goodput_and_attainment_come_before_failures_and_latencies() -> None:
    text = shown([store(random_run(1))])
    places = [text.index(word) for word in ("Goodput", "Attainment", "Failures", "Latency (ms)", "TTFT from send")]
    assert places == sorted(places)
    assert "missing from them" in re.sub(r"\s+", " ", text) and "Comparison" not in text


def test_the_table_says_how_many_samples_and_how_many_are_missing() -> None:
    text = " ".join(shown([store(run_of([answer(0, 1.0, [1.5]), failed(1, 2.0, "rejected")]))]).split())
    assert "over the 1 completed requests; 1 of 2 are missing" in text
    assert "50.00 % (1 of 2)" in text and "rejected 1" in text


def test_labels_and_phases_are_shown_as_they_are() -> None:
    run = random_run(1)
    run.label = NASTY
    for record in run.records:
        record.phase = "[red]p[/red]" if record.index % 2 else "other"
    assert NASTY in shown([store(run)], 200) and "[red]p[/red]" in shown([store(run)], 200)


def test_a_share_is_cut_so_that_only_all_is_all() -> None:
    assert [percent(share) for share in (1.0, 0.99999, 0.07, 0.29, 0.0, None)] == [
        "100.00 %",
        "99.99 %",
        "7.00 %",
        "29.00 %",
        "0.00 %",
        "-",
    ]


def test_results_stand_side_by_side_with_ratios_to_the_first() -> None:
    one = store(run_of([answer(i, float(i), [i + 0.5]) for i in range(4)], label="one"))
    two = store(run_of([answer(i, float(i), [i + 0.25]) for i in range(8)], label="two"))
    rows = {(row.title, row.unit): comparison_cells(row) for _, section in comparison([one, two]) for row in section}
    assert rows["Goodput", "req/s"] == ["0.4", "0.8  ×2.00"]
    assert rows["TTFT p99", "ms"] == ["500", "250  ×0.50"]
    assert rows["Attainment", "%"] == ["100.00 %", "100.00 %  ×1.00"]
    assert ("TPOT p50", "ms") not in rows  # no samples in either


def test_a_result_of_vllm_is_compared_only_in_what_both_mean(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"duration": 2.0, "completed": 4, "mean_ttft_ms": 7.0, "label": "theirs"}))
    sections = dict(comparison([store(random_run(1)), *load(path)]))
    own, bench = sections.values()
    assert all(row.values[1] is None for row in own)
    assert {row.title: row.values[1] for row in bench}["TTFT mean"] == 7.0
    assert "theirs" in shown(load(path)) and "Goodput" not in shown(load(path))


def test_results_of_one_label_are_told_apart() -> None:
    slow, fast = (store(run_of([answer(i, float(i), [i + 0.5]) for i in range(n)])) for n in (2, 4))
    assert names([slow, fast]) == ["hand @ 0.2/s", "hand @ 0.4/s"]
    assert names([slow, slow]) == ["hand @ 0.2/s #1", "hand @ 0.2/s #2"]
    assert names([slow]) == ["hand"]


# ------------------------------------------------------------------------------------------------------------- notes


def test_a_clean_run_needs_no_words() -> None:
    records = [answer(i, i / 20, [i / 20 + 0.5, i / 20 + 0.55]) for i in range(200)]
    assert notes(summarise(run_of(records))) == []


def test_what_a_reader_must_know_is_said() -> None:
    late = [answer(i, float(i), [i + 0.6], sent_s=i + 0.5) for i in range(9)]
    assert notes(summarise(run_of(late)))[0].startswith("Degraded: the client was late itself")
    assert notes(summarise(run_of(late, max_concurrency=2)))[0].startswith("Closed loop")
    broken_off = run_of([*late[:2], failed(2, 5.0, "unsent")], interrupted=True)
    assert "never sent and left out: 1." in notes(summarise(broken_off))[0]
    assert notes(summarise(run_of([])))[0].startswith("No request was due")
    assert notes(summarise(run_of([failed(0, 1.0, "rejected")])))[0].startswith("Nothing completed")


# ------------------------------------------------------------------------------------------------------------- plots


def test_each_picture_is_drawn_where_its_data_is_there() -> None:
    alone = {one.name for one in pictures([store(random_run(1))])}
    assert alone == {"cdf-ttft", "cdf-tpot", "over-time", "roles", "ttft-breakdown", "second-token-breakdown"}
    both = {one.name for one in pictures([store(random_run(1)), store(random_run(2))])}
    assert both >= {"goodput-rate", "ttft-breakdown", "over-time-1", "over-time-2", "roles-2"}
    assert pictures([store(run_of([]))]) == [] and pictures([store(run_of([failed(0, 1.0, "unsent")]))]) == []


@pytest.mark.parametrize(
    "records", [[failed(0, 1.0, "rejected")], [answer(0, 0.0, [0.5])], [answer(0, 3.0, [3.0, 3.0])]]
)
def test_runs_with_next_to_nothing_are_drawn(records: list) -> None:  # type: ignore[type-arg]
    drawn = pictures([store(run_of(records, warmup_s=1.0, roles=[RoleCount(0.0, 1, 1), RoleCount(0.0, 2, 0)]))])
    assert all(svg(one) for one in drawn) and png(drawn[0]).startswith(b"\x89PNG")


def test_a_curve_of_shares_ends_at_what_was_completed() -> None:
    stored = store(run_of([answer(0, 1.0, [1.5]), answer(1, 1.0, [1.2, 1.3]), failed(2, 1.0, "rejected")]))
    assert samples(stored, "ttft").requests == samples(stored, "tpot").requests == 3
    assert samples(stored, "tpot").values_s == [0.0, pytest.approx(0.1)]
    (line,) = [one for one in _cdf(stored).figure.axes[0].get_lines() if one.get_label() == "hand"]
    assert max(line.get_ydata()) == pytest.approx(200 / 3)


def test_the_parts_of_the_first_token_add_up_and_messages_count_together() -> None:
    stays = (("queued", 0.0, 0.1), ("sent", 0.1, 0.5), ("prefilling", 0.5, 0.75), ("first_token_sent", 0.75, 0.4))
    timeline = tuple(Phase(name, start_s, end_s, "w") for name, start_s, end_s in stays)
    stored = store(run_of([answer(0, 1.0, [1.5], timeline=timeline), failed(1, 1.0, "rejected")]))
    parts = parts_s(stored, "ttft")
    assert parts["sent"] == pytest.approx(0.05) and parts["queued"] == pytest.approx(0.1)
    assert sum(parts.values()) == pytest.approx(0.5)
    assert parts_s(stored, "second") == {} and parts_s(store(run_of([answer(0, 1.0, [1.5])])), "ttft") == {}


def _cdf(stored: Stored):  # type: ignore[no-untyped-def]
    return next(one for one in pictures([stored]) if one.name == "cdf-ttft")


def test_pictures_are_the_same_bytes_each_time_and_take_any_label() -> None:
    def drawn() -> list[bytes]:
        run = random_run(1)
        run.label = NASTY
        return [svg(one) for one in pictures([store(run)])]

    once = drawn()
    assert once == drawn()
    assert all(NASTY in "".join(ElementTree.fromstring(one).itertext()) for one in once[:2])


def test_an_inline_picture_takes_the_pages_ink_and_has_ids_of_its_own() -> None:
    first, second = (inline_svg(one) for one in pictures([store(random_run(1))])[:2])
    assert INK not in first and "currentColor" in first and "<metadata>" not in first
    ids = [set(re.findall(r'id="([^"]*)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", first)) <= ids[0]


# -------------------------------------------------------------------------------------------------------------- page


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    stored = [store(random_run(1)), store(random_run(2))]
    for some in (stored[:1], stored):
        drawn = pictures(some)
        text = page(some, drawn)
        checked = Checked(text)
        assert all(link.startswith("#") for link in checked.links)
        assert not re.search(r"@import|url\((?!#)", text) and "script" not in checked.tags
        assert len(checked.ids) == len(set(checked.ids))
        assert checked.tags.count("svg") == len(drawn)


def test_the_page_has_every_figure_of_the_table() -> None:
    stored = store(random_run(1))
    assert stored.summary is not None
    text = Checked(page([stored], [])).text
    assert all(value in text for _, value in summary_rows(stored.summary))
    assert text.index("Few samples") < text.index("Goodput")


def test_the_page_escapes_what_comes_from_outside() -> None:
    run = random_run(1)
    evil = '</pre></script><script>alert(1)</script>"><img src=x>'
    run.label = run.model = run.target = evil
    run.workload, run.settings = {evil: evil}, {"headers": [evil]}
    for record in run.records:
        record.phase = evil
    one, two = [store(run)], [store(run), store(run)]
    drawn = pictures(one)
    checked = Checked(page(one, drawn) + page(two, drawn))
    assert not {"script", "img"} & set(checked.tags) and evil in checked.text
