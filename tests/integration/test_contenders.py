"""Contenders on small loads: what they are made of, that tuning and search show, and who can never beat whom."""

import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from dopd.engine.contract import StepRecord
from dopd.errors import ConfigError
from dopd.policy import budget_from, policy_named
from dopd.policy.aggregated import BUDGETS_TOKENS, TokenBudget
from dopd_loadgen.compare import contenders, oracle
from dopd_loadgen.compare.bound import bound
from dopd_loadgen.compare.ground import Prompts, config_of
from dopd_loadgen.compare.model import Contender
from dopd_loadgen.model import Planned
from dopd_loadgen.report.metrics import summarise
from tests.compare_rig import LOADS, SPAN_S, load, misses, ran, setting
from tests.policy_rig import load as prompts
from tests.policy_rig import run

ORACLE = "oracle-ratio[window_s=6,horizon_s=12]"
OTHERS = ("static-1p2d", "static-2p1d", "simple", "distserve", "aggregated[budget_tokens=2048]")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_may_carry_parameters() -> None:
    made = contenders.prepare("aggregated[budget_tokens=1024]", setting(), LOADS["calm"])
    assert made.name == "aggregated[budget_tokens=1024]" and made.note == ""
    assert made.policy.budget is not None and made.policy.budget.params["budget_tokens"] == 1024


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "use one of simple, aggregated, distserve, .*static-<n>p<m>d, oracle-ratio, package.module:NAME"),
        ("static-2p2d", "2 prefill and 2 decode are not 3 workers"),
        ("aggregated[colour=1]", "does not know colour"),
        ("aggregated[budget_tokens]", "write key=number"),
        ("aggregated[", "write name"),
        ("oracle-ratio[colour=1]", "does not know colour; window_s, horizon_s, dopd"),
        ("oracle-ratio[window_s=0]", "above 0"),
        ("tests.nowhere:X", "cannot be imported"),
    ],
)
def test_what_cannot_take_part_is_refused_with_a_reason(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        contenders.prepare(name, setting(), LOADS["calm"])


@pytest.mark.parametrize(
    "name", ["simple", "static-1p2d", "distserve", "aggregated", ORACLE, "tests.policies.dyna:DYNA"]
)
def test_contenders_cross_to_another_process(name: str) -> None:
    made = contenders.prepare(name, setting(), LOADS["calm"])
    assert pickle.loads(pickle.dumps(made)).name == name
    assert config_of(made, setting()).cluster.sizes == (made.prefill, made.decode)


def test_roles_at_the_start_are_the_contenders() -> None:
    starts = {name: ran(name, "calm").roles[0] for name in OTHERS}
    counts = {name: (r.n_prefill, r.n_decode, r.n_mixed) for name, r in starts.items()}
    assert counts["static-1p2d"] == (1, 2, 0) and counts["static-2p1d"] == (2, 1, 0)
    assert counts["aggregated[budget_tokens=2048]"] == (0, 0, 3)
    assert all(len(ran(name, "calm").roles) == 1 for name in OTHERS), "nobody but the oracle changes roles"


# --- aggregated -------------------------------------------------------------------------------------------------------


def prefill_tokens(record: StepRecord) -> int:
    return sum(record.tokens.values()) - record.decodes


@pytest.mark.parametrize("budget", [256, 1024])
def test_the_token_budget_of_aggregated_serving_holds_in_every_step(budget: int) -> None:
    outcome = run(policy_named("aggregated", {"budget_tokens": budget}), prompts(2, 120, 200.0))
    records = [record for each in outcome.records.values() for record in each]
    assert max(sum(record.tokens.values()) for record in records) == budget, "never above, and used to the full"
    mixed = [record for record in records if record.decodes and prefill_tokens(record)]
    assert mixed, "chunks of prompts ride along with decodes"
    assert all(len(placement.segments) == 1 for _, placement in outcome.placements)


def test_tuning_chooses_the_budget_with_the_fewest_misses() -> None:
    made = contenders.prepare("aggregated", setting(), LOADS["shift"])
    assert made.policy.budget is not None
    budget = budget_from(made.policy.budget)
    assert isinstance(budget, TokenBudget)
    by_budget = {tokens: misses(ran(f"aggregated[budget_tokens={tokens}]", "shift")) for tokens in (512, 2048, 8192)}
    chosen = int(made.policy.budget.params["budget_tokens"])
    assert chosen in BUDGETS_TOKENS and made.note.startswith(f"budget_tokens={chosen} of 256, 512")
    assert misses(ran(f"aggregated[budget_tokens={chosen}]", "shift")) <= min(by_budget.values()) + 0.1 * len(
        LOADS["shift"]
    )
    assert len(set(by_budget.values())) > 1, "the load tells budgets apart"


# --- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("oracle", "kind"), [(ORACLE, "static"), (ORACLE.replace("]", ",dopd=1]"), "dopd")])
def test_the_oracle_is_never_worse_than_a_fixed_split_of_its_scheduling(oracle: str, kind: str, load: str) -> None:
    assert misses(ran(oracle, load)) <= min(misses(ran(f"{kind}-{n}p{3 - n}d", load)) for n in (1, 2))


def test_where_the_load_moves_the_oracle_moves_and_wins() -> None:
    statics = [misses(ran(f"static-{n}p{3 - n}d", "moves")) for n in (1, 2)]
    assert misses(ran(ORACLE, "moves")) < min(statics)
    assert len(ran(ORACLE, "moves").roles) > 1


def test_without_a_miss_to_avoid_the_oracle_is_a_static_split_to_the_last_bit() -> None:
    made = ran(ORACLE, "calm")
    assert misses(made) == 0
    static = ran(f"static-{made.roles[0].n_prefill}p{made.roles[0].n_decode}d", "calm")
    assert made.records == static.records


def test_the_oracle_decides_the_same_each_time() -> None:
    made = contenders.prepare(ORACLE, setting(), LOADS["moves"])
    again = contenders.run(made, setting(), LOADS["moves"], 1, SPAN_S)
    assert again == ran(ORACLE, "moves")


def children() -> set[str]:
    """Of this process, zombies included; a suite may have some of its own."""
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


@pytest.fixture
def alone() -> Iterator[None]:
    """Nothing of what the test forks is left behind."""
    before = children()
    yield
    assert children() <= before


@pytest.mark.usefixtures("alone")
def test_the_oracle_leaves_no_process_behind() -> None:
    made = contenders.prepare(ORACLE, setting(), LOADS["moves"])
    contenders.run(made, setting(), LOADS["moves"], 1, SPAN_S)


@pytest.mark.usefixtures("alone")
def test_a_child_that_fails_ends_the_run_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.ratio, "take", lambda *_: 1 / 0)
    made = contenders.prepare(ORACLE, setting(), LOADS["moves"])
    with pytest.raises(oracle.LoadError, match="ZeroDivisionError"):
        contenders.run(made, setting(), LOADS["moves"], 1, SPAN_S)


@pytest.mark.usefixtures("alone")
def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "LOOK_DEADLINE_S", 0.2)
    monkeypatch.setattr(oracle.ratio, "take", lambda *_: signal.pause())
    made = contenders.prepare(ORACLE, setting(), LOADS["moves"])
    with pytest.raises(oracle.LoadError, match="no end in time"):
        contenders.run(made, setting(), LOADS["moves"], 1, SPAN_S)


@pytest.mark.usefixtures("alone")
def test_ctrl_c_ends_the_children_and_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.ratio, "take", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    made = contenders.prepare(ORACLE, setting(), LOADS["moves"])
    with pytest.raises(KeyboardInterrupt):
        contenders.run(made, setting(), LOADS["moves"], 1, SPAN_S)


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", [*OTHERS, ORACLE])
def test_nobody_passes_the_bound(name: str, load: str) -> None:
    limit = bound(setting(), LOADS[load], SPAN_S)
    figures = summarise(ran(name, load)).figures
    assert figures.attainment.joint is not None
    assert figures.attainment.joint <= limit.attainment + 1e-12
    assert figures.goodput_rps <= limit.goodput_rps + 1e-9
    assert figures.goodput_tps <= limit.goodput_tps + 1e-6


@pytest.mark.parametrize("parts", [("prompts",), ("answers",), ("answers", "prompts")])
def test_what_cannot_fit_is_said_to_be_lost(parts: tuple[str, ...]) -> None:
    light, heavy = load(6, 1.0, *parts), load(6, 200.0, *parts)
    assert bound(setting(), light, SPAN_S).attainment == 1.0
    small, large = bound(setting(), heavy, SPAN_S), bound(setting(6), heavy, SPAN_S)
    assert small.attainment < large.attainment < 1.0, "more engines fit more"


def test_a_burst_has_only_the_slack_of_its_first_tokens() -> None:
    spread = [Planned(n, n * 1.8, 6000, 2) for n in range(20)]
    burst = [replace(one, at_s=18.0 + one.index * 1e-3) for one in spread]
    assert bound(setting(), spread, SPAN_S).attainment == 1.0
    assert bound(setting(), burst, SPAN_S).attainment < 0.5


def test_shared_blocks_are_computed_once() -> None:
    alone = [Planned(n, 18.0 + n * 1e-3, 6000, 2) for n in range(20)]
    shared = [replace(one, blocks=tuple(range(11))) for one in alone]
    assert bound(setting(), shared, SPAN_S).attainment > bound(setting(), alone, SPAN_S).attainment


def test_a_prompt_that_takes_longer_than_its_target_is_out_of_reach() -> None:
    limit = bound(setting(), [Planned(0, 1.0, 40_000, 2), Planned(1, 20.0, 100, 2)], SPAN_S)
    assert limit.attainment == 0.5 and "1 of 2 requests cannot be good even alone" in limit.why


def test_only_the_measured_window_counts() -> None:
    measured = replace(setting(), warmup_s=12.0, cooldown_s=12.0)
    inside = [one for one in LOADS["shift"] if 12.0 <= one.at_s <= 24.0]
    assert bound(measured, LOADS["shift"], SPAN_S).goodput_rps == pytest.approx(len(inside) / 12.0)


def test_prompts_are_the_seeds() -> None:
    one = LOADS["calm"][0]
    assert Prompts(1)(one) == Prompts(1)(one) != Prompts(2)(one)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ConfigError, match="are not 3 workers"):
        config_of(Contender("simple", policy_named("simple"), 2, 2), setting())


def test_the_label_is_what_the_user_wrote() -> None:
    run_ = ran("static-1p2d", "calm")
    assert run_.label == "static-1p2d" and msgspec.to_builtins(run_.roles[0])[1:] == [1, 2, 0]
