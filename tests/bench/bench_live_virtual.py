"""The same load live and in virtual time: emulated workers over a real broker against their virtual twin, per policy.

Run: `make bench BENCH=live_virtual`; LIVE_SEEDS=1,2,3,4,5 LIVE_SECONDS=150 LIVE_POLICIES=dopd,static-2p2d,dyn-load,
LIVE_SOURCE=shift-step (a preset or a trace) and LIVE_SCALE=0.5 say what. The twin runs three times, with the load a
little later against the planner's rounds: live they fall anywhere, and one decision that falls otherwise changes all
that follow. Asserts that under `dopd` no request failed live and no token was lost; of times and shares it tells how
far both are apart, how far the twin's runs are apart themselves, and whether the criteria are met.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import msgspec

from dopd.config import ClusterConfig, Config, EngineConfig, PolicyConfig
from dopd_loadgen.model import Planned
from dopd_loadgen.report.metrics import summarise
from dopd_loadgen.workload.plan import plan
from dopd_loadgen.workload.spec import WorkloadSpec
from tests.e2e.live_load import Told, later, run_live, run_virtual_twin

SEEDS = [int(seed) for seed in os.environ.get("LIVE_SEEDS", "1,2,3,4,5").split(",")]
SECONDS = float(os.environ.get("LIVE_SECONDS", "150"))
POLICIES = os.environ.get("LIVE_POLICIES", "dopd,static-2p2d,dyn-load").split(",")
SOURCE = os.environ.get("LIVE_SOURCE", "shift-step")
SCALE = float(os.environ.get("LIVE_SCALE", "0.5"))
# Steps are slow enough for two cores to carry the cluster in real time: 1,300 tokens/s in the busiest ten seconds.
PROFILE, PREFILL, DECODE, LEAD_S = "a100-opt-66b-tp4", 2, 2, 10.0
PART_S, MOST_TOKENS, MOST_OSL = 30.0, 2048, 600
PHASES_S = (0.0, 0.17, 0.34)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: shares of requests, seconds, counts. `late_s`: how late the client itself was (p99)."""

    attainment: float
    tpot_p50_s: float
    ttft_p90_s: float
    flips: float
    failed: float
    missing: float
    late_s: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A live run and its twins, or means of them."""

    live: Figures
    twins: list[Figures]

    @property
    def twin(self) -> Figures:
        return mean(self.twins)


NAMES = ("attainment %", "TPOT p50 ms", "TTFT p90 ms", "flips")
SCALES = (100.0, 1e3, 1e3, 1.0)


def test_live_and_virtual_runs_of_the_same_load(tmp_path: Path) -> None:
    found: dict[str, list[Pair]] = {policy: [] for policy in POLICIES}
    for seed in SEEDS:
        for policy in POLICIES:
            twins = twins_of(policy, seed)
            live = live_of(policy, seed, tmp_path / f"{policy}-{seed}")
            found[policy].append(Pair(figures(live), [figures(twin) for twin in twins]))
            show(policy, f"seed {seed}", found[policy][-1])
            told("live", live)
            told("virtual", twins[0])
    conclude(found)
    assert all(pair.live.failed == pair.live.missing == 0 for pair in found.get("dopd", ()))


def twins_of(policy: str, seed: int) -> list[Told]:
    """The virtual runs."""
    return [
        run_virtual_twin(config_of(policy), later(load(seed), LEAD_S + phase_s), seed, SECONDS + LEAD_S + phase_s)
        for phase_s in PHASES_S
    ]


def live_of(policy: str, seed: int, folder: Path) -> Told:
    """The live run; it stays in the folder."""
    live = run_live(config_of(policy), later(load(seed), LEAD_S), seed, SECONDS + LEAD_S, folder)
    (folder / "run.json").write_bytes(msgspec.json.encode(live.run))
    return live


def load(seed: int) -> list[Planned]:
    """The schedule of this seed."""
    spec = WorkloadSpec(
        source=SOURCE, seed=seed, duration_s=SECONDS, rate_scale=SCALE, max_model_len=MOST_TOKENS, max_osl=MOST_OSL,
        part_s=PART_S if SOURCE.startswith("shift") else None, loop=Path(SOURCE).is_file(), turn=Path(SOURCE).is_file(),
    )  # fmt: skip
    return list(plan(spec))


def config_of(policy: str) -> Config:
    return Config(
        cluster=ClusterConfig(prefill=PREFILL, decode=DECODE),
        policy=PolicyConfig(name=policy),
        engine=EngineConfig(kind="sim", profile=PROFILE),
    )


def figures(of: Told) -> Figures:
    summary = summarise(of.run)
    whole, lag = summary.figures, summary.lag
    return Figures(
        attainment=whole.attainment.joint or 0.0,
        tpot_p50_s=whole.latencies["tpot"].percentiles_s["50"],
        ttft_p90_s=whole.latencies["ttft"].percentiles_s["90"],
        flips=of.flips,
        failed=sum(bool(record.failure) for record in of.run.records),
        missing=whole.missing_tokens,
        late_s=lag.p99_s if lag else 0.0,
    )


def values(one: Figures) -> tuple[float, ...]:
    return (one.attainment, one.tpot_p50_s, one.ttft_p90_s, one.flips)


def mean(of: Sequence[Figures]) -> Figures:
    return Figures(*(fmean(getattr(one, name) for one in of) for name in Figures.__dataclass_fields__))


def show(policy: str, which: str, pair: Pair) -> None:
    """A line: live / virtual, and how far the virtual runs are apart."""
    live, apart = pair.live, zip(*(values(twin) for twin in pair.twins), strict=True)
    cells = [
        f"{name} {scale * a:.1f} / {scale * b:.1f} ± {scale * stdev(c):.1f}"
        for name, scale, a, b, c in zip(NAMES, SCALES, values(live), values(pair.twin), apart, strict=True)
    ]
    rest = f"failed {live.failed:g}, tokens missing {live.missing:g}, client late {1e3 * live.late_s:.0f} ms (p99)"
    print(f"  {policy:<12} {which:<7} live / virtual: {', '.join(cells)}; live {rest}", flush=True)


def conclude(found: Mapping[str, Sequence[Pair]]) -> None:
    """Means over the seeds, the criteria, and the order of the policies."""
    print(f"\n{SOURCE} x {SCALE}, {SECONDS:g} s, seeds {SEEDS}, {PREFILL}P{DECODE}D {PROFILE}; means over seeds:")
    means = {
        policy: Pair(
            mean([pair.live for pair in pairs]), [mean(turn) for turn in zip(*(p.twins for p in pairs), strict=True)]
        )
        for policy, pairs in found.items()
    }
    for policy, pair in means.items():
        show(policy, "mean", pair)
        print(f"    {verdict(pair.live, pair.twin)}")
    live = sorted(means, key=lambda policy: -means[policy].live.attainment)
    twin = sorted(means, key=lambda policy: -means[policy].twin.attainment)
    print(f"ranking live {' > '.join(live)}; virtual {' > '.join(twin)}")


def told(where: str, of: Told) -> None:
    moves = [
        f"{record.at_s - of.run.started_unix_s:.1f} {record.reason} {record.prefill}P{record.decode}D"
        for record in of.moves
    ]
    if moves:
        print(f"      {where}: {'; '.join(moves)}", flush=True)


def verdict(live: Figures, twin: Figures) -> str:
    """Differences, and whether they are within 2 points, 10 %, 20 % and 25 %."""
    points = 100 * (live.attainment - twin.attainment)
    apart = [100 * (a / b - 1) if b else 0.0 for a, b in zip(values(live), values(twin), strict=True)]
    found = [(f"attainment {points:+.1f} points", abs(points) <= 2.0)] + [
        (f"{name.rsplit(' ', 1)[0]} {difference:+.1f} %", abs(difference) <= most)
        for name, difference, most in zip(NAMES[1:], apart[1:], (10.0, 20.0, 25.0), strict=True)
    ]
    return ", ".join(f"{what} ({'met' if within else 'MISSED'})" for what, within in found)
