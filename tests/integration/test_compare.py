"""`dopd compare` as it is called: the same figures from any number of processes, Ctrl-C, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dopd.errors import LoadError
from dopd_loadgen.compare.command import main
from dopd_loadgen.compare.crew import Crashed, crew

PROFILE = "h200-llama-3.1-8b-fp8-tp1"
ASKED = [
    "--trace", "azure-conv-like", "--profile", PROFILE, "--policies", "static-1p1d,simple", "--workers", "2",
    "--rates", "0.5,1", "--tune-rate", "0.5", "--duration-s", "30", "--seed", "4",
]  # fmt: skip


def test_the_figures_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for jobs in ("1", "2"):
        file = tmp_path / f"{jobs}.json"
        assert main([*ASKED, "--warmup", "3", "--jobs", jobs, "--json", str(file)]) == 0
        written.append(file.read_bytes())
    assert written[0] == written[1]
    found = json.loads(written[0])
    assert [(row["rate_scale"], row["policy"]) for row in found["rows"]] == [
        (rate, policy) for rate in (0.5, 1.0) for policy in ("static-1p1d", "simple")
    ]
    assert all(row["requests"] > 30 and 0 < row["attainment"] <= 1 for row in found["rows"])
    for rate in (0.5, 1.0):
        assert len({row["requests"] for row in found["rows"] if row["rate_scale"] == rate}) == 1
    for load in found["loads"]:
        assert {load["requests"]} == {
            row["requests"] for row in found["rows"] if row["rate_scale"] == load["rate_scale"]
        }
        assert load["offered_rps"] == pytest.approx(load["requests"] / 27)
    limits = {one["rate_scale"]: one["goodput_rps"] for one in found["bounds"]}
    assert all(row["goodput_rps"] <= limits[row["rate_scale"]] + 1e-9 for row in found["rows"])
    capsys.readouterr()
    assert main(["--from", str(tmp_path / "1.json"), "--html", str(tmp_path / "a.html")]) == 0
    shown = capsys.readouterr().out
    assert "static-1p1d" in shown and "bound" in shown
    assert "<svg" in (tmp_path / "a.html").read_text()


def test_another_seed_takes_another_part_of_a_trace_file(tmp_path: Path) -> None:
    trace = tmp_path / "steady.csv"
    rows = "".join(f"{n / 2},{100 + n},10\n" for n in range(400))
    trace.write_text("at_s,isl_tokens,osl_tokens\n" + rows)
    file = tmp_path / "a.json"
    asked = [*ASKED, "--trace", str(trace), "--seeds", "3", "--json", str(file)]
    assert main([*asked[2:], "--policies", "simple"]) == 0
    tokens = [one["input_tps"] for one in json.loads(file.read_text())["loads"] if one["rate_scale"] == 1.0]
    assert len(set(tokens)) == 3


def test_ctrl_c_ends_all_children_and_shows_what_was_finished(tmp_path: Path) -> None:
    file = tmp_path / "part.json"
    asked = [*ASKED[: ASKED.index("--rates")], "--rates", "0.5,1", "--tune-rate", "1", "--duration-s", "20"]
    # A suite in the background ignores the signal, and what it starts would, too.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "dopd.cli", "compare", *asked]
    command += ["--jobs", "2", "--seeds", "500", "--json", str(file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr is not None
        said = ""
        while not said.startswith("measuring seed 5"):
            said = process.stderr.readline()
            assert said, "it ended by itself"
        os.killpg(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "broken off" in error and "Traceback" not in error
    assert "Broken off" in out and "static-1p1d" in out
    found = json.loads(file.read_text())
    assert found["interrupted"] and 4 <= len(found["rows"]) < 2000
    assert _gone(process.pid, within_s=20.0), "a child is left"


def _gone(group: int, within_s: float) -> bool:
    """Whether a process group is empty; multiprocessing's own tracker of resources ends a moment after its parent."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _with(flag: str, value: str) -> list[str]:
    at = ASKED.index(flag) + 1
    return [*ASKED[:at], value, *ASKED[at + 1 :]]


def _without(flag: str) -> list[str]:
    at = ASKED.index(flag)
    return ASKED[:at] + ASKED[at + 2 :]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (_without("--trace"), "--trace: is missing"),
        (_without("--profile"), "--profile: is missing"),
        (_without("--policies"), "--policies: is missing"),
        (_with("--trace", "azure-convlike"), "neither a file nor one of"),
        (_with("--profile", "h300"), "unknown profile 'h300'; use one of"),
        (_with("--policies", "simpel"), "simpel: unknown; use one of simple, "),
        (_with("--policies", "simple,simple"), "--policies: simple is given twice"),
        (_with("--policies", "static-3p5d"), "3 prefill and 5 decode are not 2 workers"),
        (_with("--policies", "aggregated[budget=1]"), "aggregated does not know budget"),
        (_with("--policies", "aggregated[budget_tokens]"), "write key=number"),
        (_with("--policies", "simple,,static-1p1d"), "give names between commas"),
        (_with("--workers", "1"), "prefill and decode apart need 2 or more"),
        (_with("--workers", "0"), "give a whole number above 0"),
        (_with("--rates", "1,-2"), "give numbers above 0"),
        (_with("--rates", "fast"), "give numbers above 0"),
        (_with("--rates", "inf"), "give numbers above 0"),
        (_with("--duration-s", "-3"), "--duration-s: -3.0 is not above 0"),
        ([*ASKED, "--reference", "aggregated"], "--reference: aggregated is not among --policies"),
        ([*ASKED, "--warmup", "20", "--cooldown", "10"], "--warmup: with --cooldown leaves nothing"),
        ([*ASKED, "--goodput", "e2el:9000"], "e2el is no target here"),
        ([*ASKED, "--goodput", "ttft:-1"], "give a positive number of milliseconds"),
        ([*ASKED, "--seeds", "0"], "give a whole number above 0"),
        ([*ASKED, "--jobs", "none"], "give a whole number above 0"),
        ([*ASKED, "--tolerance", "2"], "give a share"),
        ([*ASKED, "--part-s", "5"], "--part-s: is for shift-step and shift-ramp"),
        (["--from", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line_before_anything_runs(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(argv)
    except SystemExit as ended:  # argparse's own
        code = int(str(ended.code))
    error = capsys.readouterr().err
    assert code == 2 and said in error and "Traceback" not in error
    assert "measuring" not in error and "tuning" not in error


# --- the crew ---------------------------------------------------------------------------------------------------------


def halved(number: int) -> float:
    """A task for children."""
    if number < 0:
        raise LoadError("number", f"{number} is below 0")
    if number == 13:
        raise ValueError("thirteen")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number / 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_crew_gives_every_result_under_its_number(jobs: int) -> None:
    with crew(halved, jobs) as work:
        assert dict(work(range(7))) == {number: number / 2 for number in range(7)}
        assert dict(work([8])) == {0: 4.0}, "a second helping"


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [(-1, LoadError, "number: -1 is below 0"), (13, Crashed, "thirteen"), (99, Crashed, "killed for memory")],
)
def test_a_child_that_fails_or_dies_ends_the_whole(task: int, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said), crew(halved, 2) as work:
        dict(work([1, 2, task, 3]))


LEADER = """
import os, sys, time
from dopd_loadgen.compare.crew import crew
if __name__ == "__main__":
    with crew(time.sleep, 2) as work:
        dict(work([0.0, 0.0]))
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        print(*children, flush=True)
        dict(work([600.0, 600.0]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the kernel's death signal is Linux's")
def test_a_crew_dies_with_its_leader(tmp_path: Path) -> None:
    script = tmp_path / "leader.py"
    script.write_text(LEADER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        children = [int(pid) for pid in leader.stdout.readline().split()]
        assert len(children) >= 2
        leader.kill()
    deadline_s = time.monotonic() + 20
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline_s, "they go on without it"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
