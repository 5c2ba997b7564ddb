"""`dopd whatif` as it is called: decisions with reasons, roles over time and figures, the same each time."""

import json
from pathlib import Path

import pytest

from dopd.cli import main

LOAD = [
    "whatif", "--trace", "shift-step", "--part", "15", "--duration", "45", "--workers", "4", "--max-osl", "400",
    "--profile", "a100-qwen2.5-14b-bf16-tp1", "--rate", "0.6", "--seed", "3",
]  # fmt: skip


def test_it_lists_decisions_roles_and_figures_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        assert main([*LOAD, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert files[0].read_bytes() == files[1].read_bytes()
    found = json.loads(files[0].read_text())
    moves = [record for record in found["decisions"] if record.get("changes")]
    assert moves and found["row"]["flips"] == len(found["roles"]) - 1 == sum(len(one["changes"]) for one in moves)
    assert all(0 <= one["at_s"] <= 60 and one["reason"] for one in found["decisions"])
    for part in ("grow_", "2P2D", "PPDD", "attainment", "TTFT p90", "0 failed", f"{moves[0]['at_s']:.1f} s"):
        assert part in shown, part
    assert main([*LOAD, "--explain", moves[0]["decision_id"]]) == 0
    told = capsys.readouterr().out
    assert "Role changes:" in told and "Forecast of 10 s from" in told and "within the targets" in told
    assert main([*LOAD, "--explain", "decision-999"]) == 1
    assert "no decision 'decision-999'" in capsys.readouterr().err


def test_a_policy_that_moves_nobody_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOAD[:6], "10", *LOAD[7:], "--policy", "static-2p2d"]) == 0
    shown = capsys.readouterr().out
    assert "This policy moves nobody." in shown and "0 role changes" in shown
    assert main([*LOAD[:6], "5", *LOAD[7:], "--changes"]) == 0
    assert "decisions changes a role." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--policy", "nobody"], "nobody"),
        (["--policy", "oracle-ratio"], "future"),
        (["--policy", "dopd[colour=1]"], "colour"),
        (["--workers", "1"], "2 or more"),
        (["--profile", "abacus"], "abacus"),
        (["--trace", "nowhere.csv"], "nowhere.csv"),
        (["--goodput", "e2el:5"], "ttft"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_its_flag(
    more: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["whatif", "--trace", "shift-step", "--duration", "5", *more]) == 2
    assert part in capsys.readouterr().err
