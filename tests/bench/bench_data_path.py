"""What the way through the system costs: latency added to an emulated engine, CPU per token, tokens/s, and memory.

All in one run, in interleaved rounds: the engine alone, through gateway and worker over HTTP and over NATS, and through
other projects' proxies in front of the same engine. Measures and asserts nothing about time.
`make bench BENCH=data_path`; `BENCH_PEERS=install` installs the proxies of `peers.py` that are not there,
`BENCH_PEERS=none` leaves them out.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from dopd import config as configs
from dopd.runtime.lifeline import PARENT_VARIABLE
from dopd.supervisor.stack import gateway_url
from dopd_gateway.number_tokenizer import word_of
from dopd_loadgen.drive import DriveSettings, drive
from dopd_loadgen.model import Planned, Record
from dopd_loadgen.target_http import HttpSettings, HttpTarget
from dopd_loadgen.target_nats import NatsSettings, NatsTarget
from tests.bench import peers
from tests.bench.bare_engine import MODEL
from tests.bench.processes import taken
from tests.bench.saturation import Stream, by_http, by_nats, by_raw_nats, round_trips
from tests.e2e.live import demo
from tests.e2e.running import Running

ROOT = Path(__file__).parents[2]
RATES, ISL, OSL = (10.0, 100.0), 100, 16
FULL = 0.8
"""Of a core: what would need more at a rate is not asked for it."""
SPAN_S, WARM_S, ROUNDS = float(os.environ.get("DATA_PATH_S", "8")), 1.0, int(os.environ.get("DATA_PATH_ROUNDS", "3"))
STREAMS = Stream(count=64, osl_tokens=1500)
PROFILE = """
name = "bench"
source = "made up: steps of {step_s} s whatever is in them, so that all that differs is the way"
prefill_fixed_s = {step_s}
prefill_token_s = 1e-6
prefill_token2_s = 0.0
decode_fixed_s = {step_s}
decode_request_s = 1e-7
decode_context_s = 0.0
kv_token_bytes = 131072
kv_total_tokens = 2000000
max_running = 512
"""
LATENCY_STEP_S, SATURATION_STEP_S = 0.005, 0.0006
SERVICES = ("gateway", "w1", "nats", "planner", "forecaster", "store")


@dataclass
class Way:
    """One way to the engine: its target, whose CPU counts, and what was measured."""

    name: str
    target: HttpTarget | NatsTarget
    pids: dict[str, int]
    ttft_s: list[list[float]] = field(default_factory=list)
    gaps_s: list[list[float]] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)

    def take(self, records: Sequence[Record]) -> None:
        """The records of a round; those of its first second warm the connections."""
        self.requests += len(records)
        self.failures += [f"{r.failure}: {r.detail}" for r in records if r.failure]
        good = [r for r in records if not r.failure and r.intended_s >= WARM_S]
        self.tokens += sum(sum(r.counts) for r in records)
        self.ttft_s.append([r.times_s[0] - (r.sent_s or 0.0) for r in good])
        self.gaps_s.append([b - a for r in good for a, b in zip(r.times_s, r.times_s[1:], strict=False)])


def prompt(planned: Planned) -> str:
    rng = random.Random(f"data path/{planned.index}")
    return " ".join(word_of(rng.randrange(3, 30_000)) for _ in range(planned.isl_tokens))


def schedule(number: int, rate: float) -> list[Planned]:
    """Poisson arrivals, the same for each way."""
    rng, at_s, made = random.Random(f"round {number}"), 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < SPAN_S + WARM_S:
        made.append(Planned(number * 1_000_000 + len(made), at_s, ISL, OSL))
    return made


# --- what runs ----------------------------------------------------------------------------------------------------


@contextmanager
def bare_engine(profile: Path) -> Iterator[tuple[str, int]]:
    env = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    command = [sys.executable, "-m", "tests.bench.bare_engine", str(profile)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


@contextmanager
def cluster(profile: Path, folder: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Gateway, broker, one worker with the same engine: HTTP URL, broker's URL, pids."""
    settings: dict[str, object] = {"policy__name": "aggregated", "cluster__prefill": 1, "cluster__decode": 0}
    with demo(folder, **settings, engine__profile=profile) as up:
        up.wait_for("Ctrl-C stops everything", 60.0)
        pids = {name: process.pid for name, process in up.note().items() if name in SERVICES}
        config = configs.load(up.state.config_file, env={})
        yield gateway_url(config), config.cluster.broker_url, pids
        stop(up)


def stop(up: Running) -> None:
    up.interrupt()
    up.code(30.0)


def profile_of(step_s: float, folder: Path) -> Path:
    file = folder / f"step-{step_s}.toml"
    file.write_text(PROFILE.format(step_s=step_s))
    return file


def http_target(url: str, model: str = "") -> HttpTarget:
    return HttpTarget(url, model, prompt, HttpSettings(timeline=False, ready_timeout_s=90.0))


def available(said: list[str]) -> list[peers.Peer]:
    wish = os.environ.get("BENCH_PEERS", "")
    said += [f"{name}: {why}" for name, why in peers.ABSENT.items()]
    if wish == "none":
        return []
    found = []
    for peer in peers.PEERS:
        why = (
            peers.install(peer) if wish == "install" else "" if peer.installed() else "BENCH_PEERS=install installs it"
        )
        if why:
            said.append(f"{peer.requirement}: not installed ({why})")
        else:
            found.append(peer)
    return found


# --- latency ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(ways: Sequence[Way], said: list[str]) -> AsyncIterator[list[Way]]:
    """The ways that serve."""
    async with AsyncExitStack() as stack:
        good = []
        for way in ways:
            try:
                await way.target.open()
            except Exception as error:  # a peer that does not serve is named, and the rest measured
                said.append(f"{way.name}: does not serve ({error})")
                continue
            stack.push_async_callback(way.target.close)
            good.append(way)
        yield good


async def measure(ways: Sequence[Way], nats: str, rate: float, said: list[str]) -> tuple[list[Way], list[float]]:
    """The ways that serve, with what they took, and raw round trips through the broker."""
    trips_s: list[float] = []
    async with opened(ways, said) as good:
        for number in range(ROUNDS):
            for way in good:
                before = {name: taken(pid, children=True).cpu_s for name, pid in way.pids.items()}
                way.take(await drive(schedule(number, rate), way.target, DriveSettings(timeout_s=30.0)))
                for name, pid in way.pids.items():
                    way.cpu_s[name] = way.cpu_s.get(name, 0.0) + taken(pid, children=True).cpu_s - before[name]
            trips_s += await round_trips(nats, [planned.at_s for planned in schedule(number, rate)])
        return good, trips_s


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


FIGURES = {
    "mean": statistics.fmean,
    "p50": lambda values: percentile(values, 0.5),
    "p99": lambda values: percentile(values, 0.99),
}


def row(rounds: list[list[float]], base: list[list[float]]) -> str:
    """Each figure in ms, and in brackets what it is above that of the engine alone: the median of the rounds."""
    cells = []
    for figure in FIGURES.values():
        here = [figure(values) * 1e3 for values in rounds if values]
        above = [figure(a) * 1e3 - figure(b) * 1e3 for a, b in zip(rounds, base, strict=True) if a and b]
        cells.append(f"{statistics.median(here):7.2f} ({statistics.median(above):+6.2f})" if here else " " * 16)
    return "  ".join(cells)


def told(ways: Sequence[Way], trips_s: Sequence[float], rate: float) -> None:
    base = ways[0]
    print(f"\n{rate:g} requests/s, {ISL} + {OSL} tokens, steps of {LATENCY_STEP_S * 1e3:g} ms, {ROUNDS} x {SPAN_S:g} s")
    heads = "  ".join(f"{name:>16}" for name in FIGURES)
    print(f"ms (above the engine alone)\n{'':16} TTFT: {heads} | gap: {heads}")
    for way in ways:
        print(f"{way.name:22} {row(way.ttft_s, base.ttft_s)} | {row(way.gaps_s, base.gaps_s)}")
        if way.failures:
            print(f"{'':22} {len(way.failures)} of {way.requests} failed, the first: {way.failures[0][:150]}")
    trips = ", ".join(f"{name} {figure(trips_s) * 1e3:.2f}" for name, figure in FIGURES.items())
    print(f"one raw nats-py request and its reply: {trips} ms")
    print(f"\n{'CPU of':34} us/token   ms/request   RSS MB")
    for way in ways:
        for name, used_s in way.cpu_s.items():
            memory = taken(way.pids[name], children=True).rss_mb
            per_token, per_request = used_s / max(1, way.tokens) * 1e6, used_s / way.requests * 1e3
            print(f"{way.name:22} {name:11} {per_token:8.1f} {per_request:12.2f} {memory:8.0f}")


def too_slow(way: Way, rate: float) -> str:
    """Why not to ask this way for the rate; "" where nothing speaks against it."""
    cores = max(way.cpu_s.values()) / way.requests * rate
    return f"{way.name}: {rate:g} requests/s would take {cores:.1f} cores of one process" if cores > FULL else ""


@pytest.mark.nats
@pytest.mark.slow
def test_bench_added_latency_beside_peers(tmp_path: Path) -> None:
    said: list[str] = []
    profile = profile_of(LATENCY_STEP_S, tmp_path)
    with ExitStack() as stack:
        url, pid = stack.enter_context(bare_engine(profile))
        http, nats, pids = stack.enter_context(cluster(profile, tmp_path / "state"))
        model = configs.served_name(configs.load(tmp_path / "state" / "run" / "config.json", env={}).engine)
        path = {name: pids[name] for name in ("gateway", "w1", "nats")}
        served = [(p, *stack.enter_context(peers.running(p, url, tmp_path))) for p in available(said)]
        left_out: set[str] = set()
        for rate in RATES:
            others = [Way(f"{p.name} ({p.language})", http_target(at, MODEL), {"proxy": of}) for p, at, of in served]
            ways = [
                Way("engine alone", http_target(url), {"engine": pid}),
                Way("DOPD, HTTP", http_target(http), path),
                Way("DOPD, NATS", NatsTarget(nats, model, prompt, NatsSettings(timeline=False)), path),
                *others,
            ]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                wanted = [way for way in ways if way.name not in left_out]
                good, trips_s = runner.run(measure(wanted, nats, rate, said))
            told(good, trips_s, rate)
            assert good[0].name == "engine alone" and not any(way.failures for way in good[:3])
            for way in good:
                if why := too_slow(way, RATES[-1]):
                    left_out.add(way.name)
                    said.append(why)
        print("RSS MB: " + ", ".join(f"{name} {taken(pid).rss_mb:.0f}" for name, pid in pids.items()))
    print("\n".join(dict.fromkeys(said)))


# --- saturation ---------------------------------------------------------------------------------------------------


@pytest.mark.nats
@pytest.mark.slow
def test_bench_tokens_per_second_beside_raw_nats(tmp_path: Path) -> None:
    rows: dict[str, list[tuple[float, dict[str, float]]]] = {}
    with cluster(profile_of(SATURATION_STEP_S, tmp_path), tmp_path / "state") as (http, nats, pids):
        model = configs.served_name(configs.load(tmp_path / "state" / "run" / "config.json", env={}).engine)
        path = {name: pids[name] for name in ("gateway", "w1", "nats")}
        ways = {
            "DOPD, HTTP": lambda: by_http(http, model, STREAMS),
            "DOPD, NATS": lambda: by_nats(nats, model, STREAMS),
            "raw nats-py": lambda: by_raw_nats(nats, STREAMS),
        }
        for _ in range(ROUNDS):
            for name, run in ways.items():
                before = {each: taken(pid).cpu_s for each, pid in path.items()}
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    took_s, used_s = runner.run(run())
                spent = {each: taken(pid).cpu_s - before[each] for each, pid in path.items()}
                rows.setdefault(name, []).append((took_s, used_s or spent))
    print(f"\n{STREAMS.count} streams of {STREAMS.osl_tokens} tokens at once, medians of {ROUNDS} interleaved rounds")
    raw = statistics.median(took_s for took_s, _ in rows["raw nats-py"])
    for name, measured in rows.items():
        took_s = statistics.median(took_s for took_s, _ in measured)
        print(f"{name:14} {STREAMS.tokens / took_s:9,.0f} tokens/s  {raw / took_s:5.2f} x raw   CPU us/token:", end="")
        for each in measured[0][1]:
            used_s = statistics.median(used[each] for _, used in measured)
            print(f"  {each} {used_s / STREAMS.tokens * 1e6:.1f} ({STREAMS.tokens / used_s:,.0f}/core-s)", end="")
        print()
