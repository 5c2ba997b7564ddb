"""What is said of a comparison: means, the best, claims only with an interval; and a page that takes any text."""

import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from dopd.errors import LoadError
from dopd_loadgen.compare import result, wording
from dopd_loadgen.compare.figures import largest, losses, steps
from dopd_loadgen.compare.page import page
from dopd_loadgen.compare.pictures import pictures
from dopd_loadgen.compare.table import show
from tests.compare_runs import POLICIES, PROFILE, TRACE, comparison, row


def printed(made: result.Comparison) -> str:
    out = io.StringIO()
    show(made, Console(file=out, width=200))
    return out.getvalue()


def test_lines_are_means_over_seeds_in_the_order_of_the_command_line() -> None:
    light, heavy = steps(comparison(), TRACE, PROFILE)
    assert [line.policy for line in heavy.lines] == POLICIES
    assert (light.rate_scale, light.offered_rps, heavy.offered_rps) == (1.0, 10.0, 20.0)
    assert [line.means["goodput_rps"] for line in heavy.lines] == pytest.approx([13.0, 14.1, 13 + 1 / 3])
    assert heavy.bound == pytest.approx({"goodput_rps": 19.0, "goodput_tps": 1900.0, "attainment": 0.95})


def test_the_best_has_a_mark_and_nobody_where_all_are_alike() -> None:
    light, heavy = steps(comparison(), TRACE, PROFILE)
    assert [line.best for line in light.lines] == [False, False, False]
    assert [line.best for line in heavy.lines] == [False, True, False]


def test_better_is_said_only_where_the_interval_leaves_zero_out() -> None:
    simple, aggregated, oracle = (line.versus for line in steps(comparison(), TRACE, PROFILE)[1].lines)
    assert simple is None
    assert aggregated is not None and aggregated.claim == 1 and aggregated.mean == pytest.approx(1.1)
    assert oracle is not None and oracle.claim == 0
    assert wording.versus(aggregated) == "+1.1 [+0.852, +1.35] better"
    assert "better" not in wording.versus(oracle) and "worse" not in wording.versus(oracle)


def test_with_one_seed_nothing_is_claimed_and_the_reader_is_told() -> None:
    made = comparison(seeds=1)
    text = printed(made)
    assert "One seed" in text and "none is claimed" in text
    assert not re.search(r"\[[+-]", text) and " better" not in text


def test_a_seed_that_a_policy_lacks_does_not_enter_its_difference() -> None:
    made = comparison()
    made.rows = [one for one in made.rows if (one.policy, one.seed) != ("aggregated", 2)]
    line = steps(made, TRACE, PROFILE)[1].lines[1]
    assert line.seeds == 2 and line.versus is not None and line.versus.n == 2


def test_a_latency_without_a_sample_is_a_dash() -> None:
    made = comparison(seeds=1, rows=[row("simple", 1.0, 0, 0.0, p99_ttft_s=None)])
    assert wording.cells(steps(made, TRACE, PROFILE)[0].lines[0])[9] == "-"


def test_where_the_oracle_loses_to_aggregated_is_said() -> None:
    ((rate, difference),) = losses(comparison(), TRACE, PROFILE, "oracle-ratio", "aggregated")
    assert rate == 2.0 and difference.mean == pytest.approx(13 + 1 / 3 - 14.1)
    assert "oracle-ratio loses to aggregated at rate 2 (-0.767 [" in printed(comparison())
    assert losses(comparison(), TRACE, PROFILE, "aggregated", "oracle-ratio") == []


def test_the_largest_rates_have_a_ratio_to_the_reference() -> None:
    simple, aggregated, oracle = largest(comparison(), TRACE, PROFILE)
    assert simple.versus is None and simple.rate_scale == pytest.approx(1.01)
    assert aggregated.versus is not None and aggregated.versus.mean == pytest.approx(0.25)
    assert wording.largest_cells(aggregated)[2] == "1.26 †", "attained again above a miss"
    assert wording.largest_cells(oracle)[2:] == ["never", "-", "-", ""]


def test_the_table_has_every_policy_the_bound_and_all_notes() -> None:
    text = printed(comparison())
    for said in (
        *POLICIES,
        "bound",
        "rate 2: 20 req/s offered",
        "budget <512>",
        "2 GPUs each, 4 GPUs",
        "6 lengths of 1,200",
    ):
        assert said in text, said
    assert "0.346" in text and "30" in text, "TTFT in seconds, TPOT in milliseconds"


def test_what_is_broken_off_says_so() -> None:
    assert "Broken off" in printed(comparison(interrupted=True))
    assert "Broken off" not in printed(comparison())


def test_the_file_is_read_back_as_it_was_and_has_the_promised_keys(tmp_path: Path) -> None:
    made, path = comparison(), tmp_path / "a.json"
    result.write(made, path)
    assert result.read(path) == made
    found = msgspec.json.decode(path.read_bytes())
    assert {"config", "rows"} <= found.keys()
    promised = (
        "policy trace profile rate_scale seed requests goodput_rps goodput_tps goodput_rps_per_gpu attainment "
        "p50_ttft_s p90_ttft_s p99_ttft_s p50_tpot_s p90_tpot_s p99_tpot_s gpu_seconds flips failed"
    )
    assert set(promised.split()) <= found["rows"][0].keys()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"{", "is no comparison"), (b"{}", "is no comparison"), (b"[1]", "is no comparison")],
)
def test_a_file_that_is_no_comparison_is_refused_with_its_name(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "b.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=reason) as caught:
        result.read(path)
    assert caught.value.where == str(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    made = comparison()
    result.write(comparison(config=msgspec.structs.replace(made.config, format=9)), path)
    with pytest.raises(LoadError, match="of format 9"):
        result.read(path)


def test_the_page_is_self_contained_and_escapes_what_came_from_outside() -> None:
    made = comparison()
    text = page(made, {(TRACE, PROFILE): pictures(made, TRACE, PROFILE)})
    assert "budget &lt;512&gt;" in text and "<512>" not in text
    assert text.count("<svg") == 2 + 2 + 3, "two against rate, two distributions, a timeline for each policy"
    assert not re.search(r'(src|href)="(?!#)', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_pictures_need_only_what_is_there() -> None:
    made = comparison(seeds=1, bounds=[], details=[])
    assert [one.name.rpartition("-")[2] for one in pictures(made, TRACE, PROFILE)] == ["attainment", "goodput"]
    made.rows = [one for one in made.rows if one.rate_scale == 1.0]
    assert pictures(made, TRACE, PROFILE) == []
