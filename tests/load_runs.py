"""Small load runs made by hand: records with times that can be checked on paper."""

import random
from typing import Any

from dopd_loadgen.model import Failure, Phase, Record, RoleCount, Run

TIMELINE = (
    Phase("queued", 0.0, 0.1, "gateway"),
    Phase("prefilling", 0.1, 0.3, "w1"),
    Phase("first_token_sent", 0.3, 0.31, "w1"),
    Phase("kv_transfer", 0.31, 0.4, "w2"),
)


def answer(index: int, intended_s: float, times_s: list[float], **more: Any) -> Record:
    """A completed request with one token per time, forced, sent on time."""
    record = Record(index=index, isl_tokens=10, osl_tokens=len(times_s), intended_s=intended_s, sent_s=intended_s)
    record.times_s, record.counts = times_s, [1] * len(times_s)
    record.failure, record.status, record.ended_s, record.finish_reason = "", 200, times_s[-1], "length"
    for name, value in more.items():
        setattr(record, name, value)
    return record


def failed(index: int, intended_s: float, failure: Failure, **more: Any) -> Record:
    """A request that did not complete and got no token; an unsent one never left."""
    record = Record(index=index, isl_tokens=10, osl_tokens=4, intended_s=intended_s, failure=failure)
    if failure != "unsent":
        record.sent_s, record.ended_s = intended_s, intended_s + 0.01
    for name, value in more.items():
        setattr(record, name, value)
    return record


def run_of(records: list[Record], **more: Any) -> Run:
    """Ten seconds of schedule, targets 1 s and 0.1 s."""
    values: dict[str, Any] = {
        "label": "hand",
        "api": "virtual",
        "target": "test",
        "model": "tiny",
        "seed": 1,
        "started_unix_s": 1_700_000_000.0,
        "span_s": 10.0,
        "ended_s": 12.0,
        "slo_ttft_s": 1.0,
        "slo_tpot_s": 0.1,
        "records": records,
    }
    return Run(**(values | more))


def random_run(seed: int, n: int = 40) -> Run:
    """Every kind of end, two phases, some late sends; a function of the seed."""
    rng = random.Random(f"{seed}/run")
    kinds: list[Failure] = ["rejected", "server_error", "timeout", "short", "connection"]
    records = []
    for index in range(n):
        at_s = rng.random() * 10
        if rng.random() < 0.25:
            record = failed(index, at_s, rng.choice(kinds))
        else:
            times_s = [at_s + rng.random() * 1.5]
            for _ in range(rng.randrange(6)):
                times_s.append(times_s[-1] + rng.random() * 0.2)
            record = answer(index, at_s, times_s)
            record.sent_s = at_s + rng.random() * 0.005
            record.timeline = TIMELINE
            if rng.random() < 0.1:
                record.osl_tokens += 1
        record.phase = rng.choice(["chat", "code"])
        records.append(record)
    roles = [RoleCount(-0.1, 1, 0), RoleCount(0.0, 2, 2), RoleCount(4.0, 3, 1)]
    return run_of(records, warmup_s=1.0, cooldown_s=1.0, gpus=4, roles=roles, slo_e2e_s=2.0)
