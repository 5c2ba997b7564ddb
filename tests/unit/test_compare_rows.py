"""A run becomes a row of the figures that the report has, and a detail that holds no records."""

import msgspec
import pytest

from dopd.config import Config
from dopd.policy import policy_named
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.rows import detail, flips, row
from dopd_loadgen.model import QueueSample, RoleCount, Run
from dopd_loadgen.report.metrics import summarise
from tests.load_runs import failed, random_run, run_of

SETTING = Setting(Config(), workers=4, warmup_s=1.0, cooldown_s=2.0)
CONTENDER = Contender("static-2p2d", policy_named("static-2p2d"), 2, 2, note="why")


@pytest.mark.parametrize("seed", range(5))
def test_a_row_has_the_figures_of_the_measured_window(seed: int) -> None:
    run = msgspec.structs.replace(random_run(seed), slo_e2e_s=None)
    run.gpus, run.gpu_seconds = 8, 80.0
    made = row(run, CONTENDER, SETTING, "chat", 2.0, 7)
    cut = msgspec.structs.replace(run, warmup_s=1.0, cooldown_s=2.0)
    figures = summarise(cut).figures
    assert (made.policy, made.trace, made.rate_scale, made.seed, made.note) == ("static-2p2d", "chat", 2.0, 7, "why")
    assert (made.requests, made.failed) == (figures.requests, figures.requests - figures.completed)
    assert (made.goodput_rps, made.goodput_tps) == (figures.goodput_rps, figures.goodput_tps)
    assert made.goodput_rps_per_gpu == pytest.approx(figures.goodput_rps / 8)
    assert (made.attainment, made.attainment_ttft) == (figures.attainment.joint, figures.attainment.ttft)
    assert made.p99_ttft_s == figures.latencies["ttft"].percentiles_s["99"]
    assert (made.gpus, made.gpus_per_worker, made.gpu_seconds) == (8, 2, 80.0)


def test_a_run_in_which_nothing_completed_has_no_latency_and_attains_nothing() -> None:
    made = row(run_of([failed(0, 2.0, "rejected")], gpus=4), CONTENDER, SETTING, "chat", 1.0, 0)
    assert (made.attainment, made.goodput_rps, made.p50_ttft_s, made.p99_tpot_s, made.failed) == (0, 0, None, None, 1)


def test_flips_count_workers_that_changed_roles_and_not_those_that_came() -> None:
    roles = [
        RoleCount(-1.0, 1, 0),
        RoleCount(-1.0, 2, 2),
        RoleCount(3.0, 1, 3),
        RoleCount(3.0, 0, 4),
        RoleCount(9.0, 1, 3),
    ]
    assert flips(run_of([], roles=roles)) == 3
    assert flips(run_of([], roles=[RoleCount(0.0, 2, 2), RoleCount(1.0, 0, 2, 2)])) == 2
    assert flips(run_of([])) == 0


def test_a_distribution_ends_at_the_share_that_completed() -> None:
    run: Run = random_run(3)
    run.queues = [QueueSample(0.0, 1, 2, 3, 4), QueueSample(11.0, 1, 2, 3, 4)]
    made = detail(run, row(run, CONTENDER, SETTING, "chat", 1.0, 0), SETTING)
    figures = summarise(msgspec.structs.replace(run, warmup_s=1.0, cooldown_s=2.0)).figures
    answered = sum(spread.n for name, spread in figures.latencies.items() if name == "ttft")
    assert made.ttft.shares[-1] == pytest.approx(answered / figures.requests)
    assert made.ttft.values_s == sorted(made.ttft.values_s) and made.ttft.shares == sorted(made.ttft.shares)
    assert [one.at_s for one in made.queues] == [0.0], "what comes after the schedule is not drawn"
    assert sum(requests for _, _, requests, _ in made.bins) == sum(r.failure != "unsent" for r in run.records)
