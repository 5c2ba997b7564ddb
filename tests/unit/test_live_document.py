"""The live page's document and its patches; its files and their colours."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_gateway.live import snapshot
from dopd_gateway.live.listeners import HELD_BYTES
from dopd_gateway.live.snapshot import difference
from tests.live_past import NOW_S, Looking, full, over

PAGE = Path(snapshot.__file__).parent / "page"

# --- the document -----------------------------------------------------------------------------------------------------


def nulls(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(nulls, value.values()))
    return sum(map(nulls, value)) if isinstance(value, list | tuple) else value is None


def test_the_document_has_the_keys_that_are_documented_no_nulls_and_a_bounded_size() -> None:
    past, now_s = full()
    made = snapshot.snapshot(past, now_s)
    rows = re.findall(r"^\| (`.*?) \| ", snapshot.__doc__ or "", re.MULTILINE)
    assert set(made) == {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert nulls(made) == 0
    assert len(json.dumps(made)) < HELD_BYTES / 2
    empty = snapshot.snapshot(Looking().past, NOW_S)
    assert set(made) - set(empty) == {"rates", "decisions"} and nulls(empty) == 0


def test_a_quiet_second_changes_little() -> None:
    past, now_s = full()
    before = snapshot.snapshot(past, now_s)
    assert set(difference(before, snapshot.snapshot(past, now_s + 0.5))) == {"at_s"}
    over(past, now_s + 0.5)
    change = difference(before, snapshot.snapshot(past, now_s + 0.5))
    assert set(change) == {"at_s", "bins", "minute", "met"} and len(json.dumps(change)) < 4000


def merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386, section 2."""
    made = dict(document)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict):
            known = made.get(key)
            made[key] = merged(known if isinstance(known, dict) else {}, value)
        else:
            made[key] = value
    return made


leaf = st.integers(0, 3) | st.text(max_size=2) | st.booleans() | st.lists(st.integers(0, 2), max_size=2)
documents = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), leaf, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), leaf | inner, max_size=4),
    max_leaves=12,
)


@given(documents, documents)
def test_a_patch_makes_the_later_document_of_the_earlier_one(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(before, difference(before, after)) == after
    assert difference(after, after) == {}


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_else_and_makes_no_html_of_text() -> None:
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
        assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), file
        for name in re.findall(r'(?:from|src=|href=) ?"(?:\./)?([\w.]+\.(?:js|css|svg))"', text):
            assert (PAGE / name).exists(), name
    markup = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", markup)  # its own policy would refuse them


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_what_it_stands_on(scheme: str) -> None:
    css = (PAGE / "live.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)", 1)
    found = colours(light) if scheme == "light" else colours(light) | colours(dark.split("* {", 1)[0])
    on_paper = ("ink", "soft", "bad", "good", "wait")
    pairs = [(text, "paper") for text in on_paper] + [("ink", "well"), ("soft", "well"), ("ink", "note")]
    pairs += [("on", role) for role in ("prefill", "decode", "mixed")]
    for text, ground in pairs:
        assert contrast(found[text], found[ground]) >= 4.5, (scheme, text, ground)
