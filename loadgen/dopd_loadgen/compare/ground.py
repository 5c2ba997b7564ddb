"""One contender on the ground it shares with the others: from `Setting` and `Contender` to a virtual run.

Consumes a schedule, a seed and the two; produces a `Simulation`, and a `Run` that knows its measured window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from dopd.config import Config, PolicyConfig
from dopd.errors import ConfigError
from dopd.perf.profile import named
from dopd.policy.base import Ground
from dopd.slo import Slo
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.tally import Enough, Tally
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.sim import Simulation, simulate

TOKEN_IDS = (3, 32_000)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of a request by the seed."""

    seed: int

    def __call__(self, planned: Planned) -> list[int]:
        return token_prompt(planned, self.seed, *TOKEN_IDS)


def slo_of(setting: Setting) -> Slo:
    """The targets."""
    return Slo(setting.config.slo.ttft_s, setting.config.slo.tpot_s)


def ground_of(setting: Setting) -> Ground:
    """What policies may know before they start."""
    return Ground(named(setting.config.engine.profile), slo_of(setting))


def window_of(setting: Setting, span_s: float) -> tuple[float, float]:
    """Start and end of what is measured, both included."""
    return setting.warmup_s, max(setting.warmup_s, span_s - setting.cooldown_s)


def tally_of(setting: Setting, span_s: float, limit: float = float("inf")) -> Tally:
    """A count of the misses that the figures will show."""
    return Tally(slo_of(setting), *window_of(setting, span_s), limit)


def config_of(contender: Contender, setting: Setting) -> Config:
    """The setting's config with the contender's name and sizes. Raises ConfigError when the sizes do not add up."""
    if contender.prefill + contender.decode != setting.workers:
        ratio = f"{contender.prefill} prefill and {contender.decode} decode"
        raise ConfigError("--workers", contender.name, f"{ratio} are not {setting.workers} workers")
    cluster = msgspec.structs.replace(setting.config.cluster, prefill=contender.prefill, decode=contender.decode)
    return msgspec.structs.replace(setting.config, cluster=cluster, policy=PolicyConfig(contender.policy.name))


def simulation(contender: Contender, setting: Setting, seed: int, span_s: float) -> Simulation:
    """What `simulate` needs."""
    return Simulation(
        config=config_of(contender, setting),
        seed=seed,
        prompt=Prompts(seed),
        timeout_s=setting.timeout_s,
        span_s=span_s,
        label=contender.name,
        policy=contender.policy,
    )


def measured(run: Run, setting: Setting) -> Run:
    """The run with what is cut off its ends."""
    return msgspec.structs.replace(run, warmup_s=setting.warmup_s, cooldown_s=setting.cooldown_s)


def attempt(
    simulation: Simulation, schedule: Sequence[Planned], setting: Setting, limit: float
) -> tuple[int, Run] | None:
    """Misses and run; None as soon as there are more than `limit` misses."""
    tally = tally_of(setting, simulation.span_s, limit)
    try:
        run = simulate(schedule, replace(simulation, watch=tally))
    except Enough:
        return None
    return tally.missed, measured(run, setting)
