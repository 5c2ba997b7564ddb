"""A comparison as one self-contained page. Consumes a `Comparison`; produces HTML that needs no network."""

import json
from collections.abc import Iterator
from html import escape

import msgspec

from dopd_loadgen.compare import wording
from dopd_loadgen.compare.figures import largest, steps
from dopd_loadgen.compare.result import Comparison
from dopd_loadgen.report.canvas import Picture
from dopd_loadgen.report.html import document, figure, numbers, row


def page(comparison: Comparison, pictures: dict[tuple[str, str], list[Picture]]) -> str:
    """Tables first, then pictures, per trace and profile; in the end how it was made."""
    config = comparison.config
    title = f"{len(config.policies)} policies on the same arrivals"
    made = config.versions.get("commit", "")
    seeds = ", ".join(map(str, config.seeds))
    body = [f"<h1>{escape(title)}</h1>", f'<p class="sub">virtual time; seeds {seeds}; {escape(made)}</p>']
    body.append(_notes(wording.general_notes(comparison)))
    for trace, profile in wording.grounds(comparison):
        body += _ground(comparison, trace, profile, pictures.get((trace, profile), []))
    body += ["<h2>How it was made</h2>", _details(comparison)]
    return document(title, body)


def _ground(comparison: Comparison, trace: str, profile: str, pictures: list[Picture]) -> Iterator[str]:
    yield f"<h2>{escape(wording.title(trace, profile))}</h2>"
    yield f'<div class="dense">{numbers(wording.header(comparison), _lines(comparison, trace, profile), "")}</div>'
    if found := largest(comparison, trace, profile):
        yield "<h3>Largest rate that attains a target</h3>"
        yield numbers(wording.LARGEST_HEADER, (row(wording.largest_cells(one)) for one in found), "")
    said = "".join(f"<li>{escape(note)}</li>" for note in wording.notes(comparison, trace, profile))
    yield f"<ul>{said}</ul>"
    if pictures:
        yield '<div class="plots">' + "\n".join(map(figure, pictures)) + "</div>"


def _lines(comparison: Comparison, trace: str, profile: str) -> Iterator[str]:
    width = len(wording.header(comparison))
    for step in steps(comparison, trace, profile):
        yield f'<tr class="section"><th colspan="{width}">{escape(wording.rate_title(step))}</th></tr>'
        for line in step.lines:
            yield row(wording.cells(line), "best" if line.best else "")
        limit = wording.bound_cells(step, step.lines[0].gpus)
        if limit is not None:
            yield row(limit, "limit")


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _details(comparison: Comparison) -> str:
    text = json.dumps(msgspec.to_builtins(comparison.config), indent=2, ensure_ascii=False)
    return f"<details><summary>configuration</summary><pre>{escape(text)}</pre></details>"
