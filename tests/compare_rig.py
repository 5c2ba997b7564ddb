"""Small loads on few slow engines, near their capacity: what comparisons are tested on."""

import random
from dataclasses import replace
from functools import cache

import msgspec

from dopd.config import Config
from dopd.obs.log import logs_from
from dopd_loadgen.compare import contenders
from dopd_loadgen.compare.ground import slo_of
from dopd_loadgen.compare.model import Setting
from dopd_loadgen.compare.tally import good
from dopd_loadgen.model import Planned, Run

PROFILE = "a100-qwen2.5-14b-bf16-tp1"
WORKERS = 3
SPAN_S = 36.0
TPOT_S = 0.045
PARTS = {"prompts": (2500, 12), "answers": (200, 400)}
"""Mean input and output tokens."""


def setting(workers: int = WORKERS) -> Setting:
    config = Config()
    engine = msgspec.structs.replace(config.engine, profile=PROFILE)
    targets = msgspec.structs.replace(config.slo, tpot_s=TPOT_S)
    return Setting(msgspec.structs.replace(config, engine=engine, slo=targets), workers)


def load(seed: int, rate: float, *parts: str, span_s: float = SPAN_S) -> list[Planned]:
    """Poisson arrivals; the parts follow each other and take equal time."""
    rng = random.Random(f"compare/{seed}")
    planned: list[Planned] = []
    at_s = rng.expovariate(rate)
    while at_s < span_s:
        isl, osl = PARTS[parts[int(at_s / span_s * len(parts))]]
        lengths = (max(1, int(mean * rng.uniform(0.5, 1.5))) for mean in (isl, osl))
        planned.append(Planned(len(planned), at_s, *lengths))
        at_s += rng.expovariate(rate)
    return planned


def after(first: list[Planned], second: list[Planned]) -> list[Planned]:
    """The second load in the second half."""
    moved = [replace(one, at_s=SPAN_S / 2 + one.at_s, index=len(first) + one.index) for one in second]
    return first + moved


LOADS = {
    "calm": load(1, 1.0, "prompts", "answers"),
    "prompts": load(2, 6.0, "prompts"),
    "answers": load(3, 6.0, "answers"),
    "shift": load(4, 6.0, "prompts", "answers", "prompts"),
    "overload": load(5, 16.0, "prompts", "answers", span_s=SPAN_S / 3),
    "moves": after(load(7, 4.5, "prompts", span_s=SPAN_S / 2), load(8, 12.0, "answers", span_s=SPAN_S / 2)),
}


@cache
def ran(name: str, load: str) -> Run:
    """One contender, tuned on the very load where it tunes: once for all tests that look at it."""
    with logs_from("warning"):
        contender = contenders.prepare(name, setting(), LOADS[load])
        return contenders.run(contender, setting(), LOADS[load], 1, SPAN_S)


def misses(run: Run) -> int:
    """Requests that did not meet a target."""
    return sum(not good(record, slo_of(setting())) for record in run.records)
