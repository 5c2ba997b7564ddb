"""The authors' static runs from their engines' profiles: one that the profiles have not seen is predicted.

`pytest -s` shows the table of docs/profiles.md.
"""

import random
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dopd import perf
from dopd.config import ClusterConfig, Config, EngineConfig, PolicyConfig
from dopd.obs.log import logs_from
from dopd.perf.fit import fit, non_negative
from dopd.perf.model import step_s
from dopd.perf.points import read_table
from dopd.perf.profile import PROFILES, Profile
from dopd_loadgen.model import Planned, Record
from dopd_loadgen.sim import Simulation, simulate
from tests.testbed import DATA, MIXED, MIXED_SD_TOKENS, TARGET, UNIFORM, mean, points, windows

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent: the authors' measurements are not here")

OUTPUT_SD_TOKENS = 20.0
SUMS = DATA / "composed_prefill_decode.csv.gz"
PREFILL, DECODE = PROFILES["dopd-h100-70b-p-tp1"], PROFILES["dopd-h100-70b-d-tp2"]
RUNS = {TARGET: (80, 1024), 19: (100, 512), 2: (100, 512)}
"""Run to its closed-loop concurrency and requests; the first is the one that the profiles have not seen."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What a frontend sees, in the mean of the steady part."""

    requests_per_s: float
    ttft_s: float
    itl_s: float
    decodes: float
    isl_tokens: float
    osl_tokens: float


def measured(run: int) -> Steady:
    found = windows(DATA / "dopd_testbed_5s.csv.gz", (run,))
    names = ("requests_per_s", "ttft_s", "itl_s", "decodes", "isl_tokens", "osl_tokens")
    return Steady(*(mean([getattr(window, name) for window in found]) for name in names))


def predicted(true: Steady, run: int, prefill: str = PREFILL.name, decode: str = DECODE.name) -> Steady:
    """The same closed loop on the virtual cluster, 1P1D; steady from 20 s on until the last 15 % begin."""
    rng = random.Random(f"testbed/{run}")
    concurrency, requests = RUNS[run]
    spread = MIXED_SD_TOKENS if run in MIXED else 0.0
    plans = [
        Planned(
            index,
            0.0,
            max(1, round(rng.gauss(true.isl_tokens, spread))),
            max(2, round(rng.gauss(true.osl_tokens, OUTPUT_SD_TOKENS if run in MIXED else 0.0))),
        )
        for index in range(requests)
    ]
    engine = EngineConfig(profile=prefill, decode_profile=decode, save_decode_cache=False)
    config = Config(cluster=ClusterConfig(prefill=1, decode=1), engine=engine, policy=PolicyConfig("simple"))
    with logs_from("warning"):
        what = Simulation(config, 1, _prompt, timeout_s=600.0, span_s=100.0, max_concurrency=concurrency)
        done = simulate(plans, what)
    assert not [record for record in done.records if record.failure]
    return _steady(done.records, 20.0, 0.85 * done.ended_s, true)


def _prompt(planned: Planned) -> list[int]:
    first = 1 + planned.index * 10_000
    return list(range(first, first + planned.isl_tokens))


def _steady(records: list[Record], from_s: float, to_s: float, true: Steady) -> Steady:
    ttfts = [r.times_s[0] - (r.sent_s or 0.0) for r in records if from_s <= r.times_s[0] < to_s]
    gaps = [b - a for r in records for a, b in pairwise(r.times_s) if from_s <= b < to_s]
    span_s = to_s - from_s
    return Steady(len(ttfts) / span_s, mean(ttfts), mean(gaps), sum(gaps) / span_s, true.isl_tokens, true.osl_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=["not seen", "OSL 239", "OSL 399"])
def test_a_static_run_of_the_authors_is_reproduced(run: int) -> None:
    true = measured(run)
    told = predicted(true, run)
    show(f"run {run}, concurrency {RUNS[run][0]}", true, told)
    assert told.requests_per_s == pytest.approx(true.requests_per_s, rel=0.10)
    assert told.itl_s == pytest.approx(true.itl_s, rel=0.15)
    prefill_bound(true, told)
    square = true.isl_tokens**2 + (MIXED_SD_TOKENS**2 if run in MIXED else 0.0)
    assert told.requests_per_s == pytest.approx(1 / step_s(PREFILL, true.isl_tokens, square, 0, 0), rel=0.02)


@pytest.mark.slow
def test_even_a_fit_that_saw_prompts_of_one_length_only_comes_near(tmp_path: Path) -> None:
    """Runs 14 to 24 are one load; here none of them is seen. One length tells the fixed cost of prefill once the slope
    is taken from kernel sums, and the decode step."""
    seen = points(windows(DATA / "dopd_testbed_5s.csv.gz", UNIFORM))
    meta = {"name": "x", "source": "s", "gpus": 1, "kv_token_bytes": 1, "kv_total_tokens": 1}
    sums = fit(read_table(SUMS, meta, gpu="H100-80GB", model="Llama-3-70B", tp=1, dtype="fp8"))
    prompts, decodes = ([point for point in seen if point.phase == phase] for phase in ("prefill", "decode"))
    work_s = [sums.prefill_token_s * p.prompt_tokens + sums.prefill_token2_s * p.prompt_square_tokens2 for p in prompts]
    fixed_s = mean([p.latency_s - done_s for p, done_s in zip(prompts, work_s, strict=True)])
    times = np.array([p.latency_s for p in decodes])
    matrix = np.array([(1.0, p.context_tokens / 1e5) for p in decodes])
    decode = non_negative(matrix / times[:, None], np.ones(len(times))) / (1, 1e5)
    files = [tmp_path / f"{profile.name}.toml" for profile in (PREFILL, DECODE)]
    files[0].write_text(
        changed(PREFILL, prefill_fixed_s=fixed_s, prefill_token_s=sums.prefill_token_s), encoding="utf-8"
    )
    files[1].write_text(
        changed(DECODE, decode_fixed_s=decode[0], decode_request_s=0.0, decode_context_s=decode[1]), encoding="utf-8"
    )
    true = measured(TARGET)
    told = predicted(true, TARGET, *map(str, files))
    show("its load not seen at all", true, told)
    assert told.requests_per_s == pytest.approx(true.requests_per_s, rel=0.10)
    assert told.itl_s == pytest.approx(true.itl_s, rel=0.15)
    prefill_bound(true, told)


def changed(profile: Profile, **more: float) -> str:
    """The shipped file with other coefficients."""
    text = (Path(perf.__path__[0]) / "profiles" / f"{profile.name}.toml").read_text(encoding="utf-8")
    for key, value in more.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {float(value)!r}", text, flags=re.MULTILINE)
        assert count == 1
    return text


def show(what: str, true: Steady, told: Steady) -> None:
    print(f"\n{what}: ISL {true.isl_tokens:.0f}, OSL {true.osl_tokens:.0f}")
    for name in ("requests_per_s", "itl_s", "ttft_s", "decodes"):
        there, here = getattr(true, name), getattr(told, name)
        print(f"{name:15} measured {there:8.4f} predicted {here:8.4f} {here / there - 1:+.1%}")


def prefill_bound(true: Steady, told: Steady) -> None:
    """Seconds until the first token, and a decode side that is mostly empty."""
    assert told.ttft_s > 1.0 and true.ttft_s > 1.0
    assert told.decodes * (true.isl_tokens + true.osl_tokens / 2) < 0.4 * DECODE.kv_total_tokens
