"""What is compared: contenders on one `Setting` and one schedule, and a `Row` of figures for each of their runs."""

from dataclasses import dataclass

import msgspec

from dopd.config import Config
from dopd.policy.base import Policy


@dataclass(frozen=True, slots=True)
class Setting:
    """The ground that contenders share: `workers` engines of `config.engine.profile`, targets in `config.slo`.

    The rest of `config` but cluster and policy holds for all of them. A request has `timeout_s` from its intended send.
    Requests due in the first `warmup_s` and the last `cooldown_s` of the schedule are sent and not counted.
    """

    config: Config
    workers: int
    timeout_s: float = 600.0
    warmup_s: float = 0.0
    cooldown_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy that is ready to run: tuned, and with its first roles.

    `name` is what the user wrote (`static-3p5d`). `note` says in words what was tuned or searched on which load, empty
    when nothing was. With `oracle` the roles are chosen by simulating the future.
    """

    name: str
    policy: Policy
    prefill: int
    decode: int
    note: str = ""
    oracle: bool = False


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one contender. Latencies are percentiles over completed requests, None when there is none.

    `goodput_tps` counts the output tokens of requests that met every target. `gpus` is GPUs per worker times workers;
    `gpu_seconds` those held during the schedule. `flips` counts role changes after the start.
    """

    policy: str
    trace: str
    profile: str
    rate_scale: float
    seed: int
    requests: int
    goodput_rps: float
    goodput_tps: float
    goodput_rps_per_gpu: float
    attainment: float
    attainment_ttft: float
    attainment_tpot: float
    p50_ttft_s: float | None
    p90_ttft_s: float | None
    p99_ttft_s: float | None
    p50_tpot_s: float | None
    p90_tpot_s: float | None
    p99_tpot_s: float | None
    gpus: int
    gpus_per_worker: int
    gpu_seconds: float
    flips: int
    failed: int
    note: str = ""
