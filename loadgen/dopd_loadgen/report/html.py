"""One self-contained page of results. Consumes `Stored`s and pictures; produces HTML that needs no network.

Whatever came from outside (labels, settings, messages) is escaped. Light or dark follows the reader's scheme.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from dopd_loadgen.report.canvas import Picture, inline_svg
from dopd_loadgen.report.comparison import comparison, comparison_cells, names
from dopd_loadgen.report.notes import notes
from dopd_loadgen.report.result import Stored
from dopd_loadgen.report.samples import part_rows
from dopd_loadgen.report.wording import (
    PART_HEADER,
    PHASE_HEADER,
    latency_caption,
    latency_cells,
    latency_header,
    latency_rows,
    part_cells,
    phase_cells,
    summary_rows,
)

_CSS = """
:root { color-scheme: light dark; --ink: #1a1b1c; --paper: #fff; --soft: #5c6066; --line: #d9dbde; --grid: #dcdee1;
  --note: #fff3d6; --note-line: #d99a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --paper: #15171a; --soft: #a0a5ac; --line: #34383d;
  --grid: #3a3e44; --note: #3a2f14; --note-line: #e0a92e } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 0 }
p.sub, caption, figcaption { color: var(--soft); font-size: .875rem; text-align: left }
p.sub { margin: .25rem 0 1rem } h1, h2, td, p { overflow-wrap: anywhere }
ul.notes { list-style: none; margin: 1rem 0; padding: 0 }
ul.notes li { background: var(--note); border-left: 4px solid var(--note-line); padding: .5rem .75rem; margin: .5rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem }
caption { caption-side: bottom; padding-top: .5rem }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
table.numbers td, table.numbers thead th { text-align: right; white-space: nowrap; overflow-wrap: normal }
table.numbers th:first-child { text-align: left; white-space: nowrap }
.dense table { font-size: .8125rem } .dense th, .dense td { padding: .2rem .5rem .2rem 0 }
tr.best td { font-weight: 650 }
tr.limit td, tr.limit th { color: var(--soft); font-style: italic }
table.numbers tr.section th { padding-top: 1rem; white-space: normal }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem }
figure { margin: 0 } figure svg { width: 100%; max-width: 44rem; height: auto; display: block }
svg text { font-family: system-ui, sans-serif !important }
pre { overflow-x: auto; font-size: .8125rem; padding: .75rem; border: 1px solid var(--line) }
summary { cursor: pointer }
"""


def page(stored: Sequence[Stored], pictures: Sequence[Picture]) -> str:
    """A run's page, or with several results their comparison and then each."""
    own = [one for one in stored if one.summary is not None]
    title = stored[0].label if len(stored) == 1 else f"Comparison of {len(stored)} results"
    body = [f"<h1>{escape(title)}</h1>"]
    if len(stored) == 1 and own:
        body += [_origin(own[0]), _notes(own[0]), _figures(own[0])]
    else:
        body += [_labelled_notes(own), "<h2>Side by side</h2>", _comparison(stored)]
    if pictures:
        body += ["<h2>Plots</h2>", '<div class="plots">', *map(figure, pictures), "</div>"]
    if len(stored) > 1:
        called = zip(names(stored), stored, strict=True)
        body += [f"<h2>{escape(name)}</h2>{_origin(one)}{_figures(one)}" for name, one in called if one.summary]
    body.append("<h2>How it was made</h2>")
    body += [_details(one) for one in stored]
    return document(title, body)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page of pieces that are HTML already; the title is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _origin(stored: Stored) -> str:
    run = stored.run
    assert run is not None
    return f'<p class="sub">{escape(run.model)} at {escape(run.target)} over {run.api}; seed {run.seed}</p>'


def _notes(stored: Stored, prefix: str = "") -> str:
    assert stored.summary is not None
    items = "".join(f"<li>{escape(prefix + note)}</li>" for note in notes(stored.summary))
    return f'<ul class="notes">{items}</ul>' if items else ""


def _labelled_notes(own: Sequence[Stored]) -> str:
    return "".join(_notes(one, f"{one.label}: ") for one in own)


def _figures(stored: Stored) -> str:
    summary = stored.summary
    assert summary is not None
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in summary_rows(summary)
    )
    header = latency_header(summary.figures)
    latencies = [latency_cells(name, spread, len(header)) for name, spread in latency_rows(summary.figures)]
    parts = [f"<table>{rows}</table>", "<h2>Latency (ms)</h2>"]
    parts.append(numbers(header, map(row, latencies), latency_caption(summary.figures)))
    if len(summary.phases) > 1:
        phases = (row(phase_cells(name, figures)) for name, figures in summary.phases.items())
        parts += ["<h2>Phases</h2>", numbers(PHASE_HEADER, phases, "")]
    if waits := part_rows(stored):
        cells = (row(part_cells(name, stats)) for name, stats in waits)
        parts += [
            "<h2>What the first and the second token waited for (ms)</h2>",
            numbers(PART_HEADER, cells, ""),
        ]
    return "".join(parts)


def _comparison(stored: Sequence[Stored]) -> str:
    header = ["", *names(stored)]
    rows = []
    for title, section in comparison(stored):
        rows.append(f'<tr class="section"><th colspan="{len(header)}">{escape(title)}</th></tr>')
        rows += [
            row([f"{one.title} ({one.unit})" if one.unit else one.title, *comparison_cells(one)]) for one in section
        ]
    return numbers(header, rows, "× is the ratio to the first.")


def numbers(header: Iterable[str], rows: Iterable[str], caption: str) -> str:
    """A table of `row`s that scrolls by itself where the screen is too narrow."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f'<table class="numbers">{below}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def row(cells: Sequence[str], kind: str = "") -> str:
    """One row of a table, its first cell the title; `kind` may be "best" or "limit"."""
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    opened = f'<tr class="{kind}">' if kind else "<tr>"
    return f'{opened}<th scope="row">{escape(cells[0])}</th>{rest}</tr>'


def figure(picture: Picture) -> str:
    """A picture under its title."""
    drawing = f'<div role="img" aria-label="{escape(picture.alt)}">{inline_svg(picture)}</div>'
    return f"<figure><h3>{escape(picture.title)}</h3>{drawing}</figure>"


def _details(stored: Stored) -> str:
    """What made the result, collapsed."""
    made: Mapping[str, Any]
    run = stored.run
    if run is None:
        made = {key: value for key, value in stored.keys.items() if not isinstance(value, list | dict)}
    else:
        made = {name: getattr(run, name) for name in run.__struct_fields__ if name not in ("records", "roles")}
    text = json.dumps(made, indent=2, default=str, ensure_ascii=False)
    where = f" ({stored.where})" if stored.where else ""
    return f"<details><summary>{escape(stored.label + where)}</summary><pre>{escape(text)}</pre></details>"
