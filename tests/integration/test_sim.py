"""A schedule against the virtual cluster: each request has its record, times are exact, the seed decides everything."""

import random

import pytest

from dopd.config import ClusterConfig, Config, SloConfig
from dopd.obs.log import logs_from
from dopd_loadgen.breakdown import breakdown
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.sim import Simulation, simulate

SPAN_S = 20.0


def prompt(planned: Planned) -> list[int]:
    first = planned.index * 1_000
    return list(range(first, first + planned.isl_tokens))


def schedule(count: int = 60, seed: int = 3) -> list[Planned]:
    rng = random.Random(seed)
    times = sorted(rng.random() * SPAN_S for _ in range(count))
    return [
        Planned(index, at_s, rng.randrange(1, 900), rng.randrange(1, 60), phase="a" if at_s < 10 else "b")
        for index, at_s in enumerate(times)
    ]


def simulated(seed: int = 1, timeout_s: float = 60.0, plans: list[Planned] | None = None, workers: int = 1) -> Run:
    config = Config(cluster=ClusterConfig(prefill=workers, decode=workers), slo=SloConfig(ttft_s=1.0, tpot_s=0.05))
    what = Simulation(config, seed, prompt, timeout_s, SPAN_S)
    with logs_from("warning"):
        return simulate(schedule() if plans is None else plans, what)


def test_every_planned_request_has_a_record_with_all_its_tokens() -> None:
    run = simulated()
    assert [(r.index, r.failure, sum(r.counts), r.phase) for r in run.records] == [
        (p.index, "", p.osl_tokens, p.phase) for p in schedule()
    ]
    for record in run.records:
        assert record.sent_s == record.intended_s, "a virtual client is never late"
        assert record.intended_s < record.times_s[0]
        assert record.times_s == sorted(record.times_s)
        assert record.ended_s is not None and record.times_s[-1] <= record.ended_s <= run.ended_s


def test_the_same_seed_gives_the_same_run_to_the_last_bit() -> None:
    assert simulated() == simulated()


def test_the_run_says_what_it_ran_on() -> None:
    run = simulated(workers=2)
    assert (run.api, run.gpus, run.slo_ttft_s, run.slo_tpot_s) == ("virtual", 4, 1.0, 0.05)
    assert (run.roles[-1].n_prefill, run.roles[-1].n_decode) == (2, 2)


def test_the_run_samples_what_waits_and_what_decodes() -> None:
    plans = [Planned(index, 2.0, 8_000, 200) for index in range(40)]
    queues = simulated(plans=plans).queues
    assert [one.at_s for one in queues] == sorted({one.at_s for one in queues})
    assert queues[0].waiting == queues[0].prefill_tokens == queues[0].decoding == 0
    assert max(one.waiting for one in queues) > 10, "more than a prefill worker gives credit for"
    assert max(one.prefill_tokens for one in queues) >= 8_000
    assert max(one.decoding for one in queues) > 1 and max(one.context_tokens for one in queues) > 8_000


def test_a_request_that_cannot_end_in_time_is_a_timeout_and_keeps_what_came() -> None:
    plans = [Planned(0, 0.0, 100, 5_000), Planned(1, 1.0, 100, 10)]
    late, fine = simulated(timeout_s=5.0, plans=plans).records
    assert late.failure == "timeout"
    assert 0 < sum(late.counts) < 5_000
    assert fine.failure == ""


def test_a_request_longer_than_the_context_is_named_and_the_rest_goes_on() -> None:
    plans = [Planned(0, 0.0, 200_000, 10), Planned(1, 1.0, 100, 10)]
    refused, fine = simulated(plans=plans).records
    assert refused.failure in ("client_error", "server_error") and refused.detail
    assert fine.failure == ""


def test_timelines_tell_what_the_latencies_are_made_of() -> None:
    run = simulated()
    parts = breakdown(run.records)
    assert parts["ttft"].count == len(run.records)
    for record in run.records:
        first = next(phase for phase in record.timeline if phase.name == "first_token_sent")
        assert first.start_s - run.started_unix_s == pytest.approx(record.times_s[0])
    assert parts["prefilling"].mean_s > 0.01
    assert parts["ttft"].mean_s >= parts["prefilling"].mean_s
