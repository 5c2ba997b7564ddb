"""Little's law: how many are somewhere on average is how many pass per second times how long they stay there.

The populations are counted at the gateway and in the engines while a load runs; rates and times come from the records
and their timelines. One does not know of the other.
"""

from functools import cache

import numpy as np
import pytest

from dopd_loadgen.model import Record
from tests.shapes_rig import H200, Served, poisson, serve, service_s

IN_ENGINE = ("prefill_queued", "prefilling", "kv_transfer", "decode_queued", "first_decode_step", "decoding")


@cache
def served(load: float) -> Served:
    isl, workers = 512, 2
    plans = poisson(400, workers * load / service_s(H200, isl), isl, 60)
    return serve(plans, prefill=workers, decode=workers, sample_s=0.002)


def stayed_s(record: Record, worker_id: str) -> float:
    """How long the request was in this worker's engine."""
    return sum(p.end_s - p.start_s for p in record.timeline if p.where == worker_id and p.name in IN_ENGINE)


@pytest.mark.parametrize("load", [0.4, 0.9])
def test_requests_in_the_gateway_are_throughput_times_their_time_from_arrival_to_end(load: float) -> None:
    run = served(load)
    ends_s = [record.ended_s for record in run.records if record.ended_s is not None]
    total_s = sum(ends_s) - sum(record.intended_s for record in run.records)
    # The sum over requests of their times is the integral over time of their number: rate x mean time, x the span.
    assert np.mean([sample.gateway for sample in run.samples]) == pytest.approx(total_s / max(ends_s), rel=0.01)


@pytest.mark.parametrize("worker_id", ["w1", "w2", "w3", "w4"])
@pytest.mark.parametrize("load", [0.4, 0.9])
def test_requests_in_each_engine_are_its_throughput_times_their_time_in_it(load: float, worker_id: str) -> None:
    run = served(load)
    span_s = max(record.ended_s or 0.0 for record in run.records)
    times_s = [stay_s for record in run.records if (stay_s := stayed_s(record, worker_id))]
    assert len(times_s) > 80, "it had its part"
    expected = len(times_s) / span_s * np.mean(times_s)
    assert np.mean([sample.engines[worker_id] for sample in run.samples]) == pytest.approx(expected, rel=0.01)
