"""Who takes part in a comparison: from what the user wrote to a policy that is ready, and to its runs.

Consumes names such as `static-3p5d` or `aggregated[budget_tokens=1024]`, a `Setting` and the load to tune on; produces
`Contender`s and, of each, `Run`s in virtual time.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from dopd.errors import ConfigError
from dopd.perf.profile import named
from dopd.policy import ORACLE, POLICIES, policy_named
from dopd.policy.static_split import named_split, static_split
from dopd_loadgen.compare import ground, oracle, placement, tune
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.sim import simulate

_FORM = re.compile(r"([^\[\]]+)(?:\[([^\[\]]*)\])?")


def names() -> list[str]:
    """What can be written, in words where it is a pattern."""
    return [*POLICIES, "static-<n>p<m>d", ORACLE, "package.module:NAME"]


def prepare(name: str, setting: Setting, schedule: Sequence[Planned]) -> Contender:
    """The contender of that name, tuned or placed on this schedule where it has something to tune.

    Raises ConfigError for an unknown name (with those there are), a parameter it does not know, sizes that do not fit.
    """
    base, params = parse(name)
    if setting.workers < 2:
        raise ConfigError("--workers", str(setting.workers), "a split needs 2 or more")
    if not schedule:
        raise ConfigError("--trace", name, "there is no request to tune on")
    made = _makers().get(base, _plain)(base, params, setting, schedule)
    made = replace(made, name=name)
    ground.config_of(made, setting)
    return made


def run(contender: Contender, setting: Setting, schedule: Sequence[Planned], seed: int, span_s: float) -> Run:
    """One run in virtual time; the same arguments give the same run to the last bit."""
    if contender.oracle:
        return oracle.run(contender, setting, schedule, seed, span_s, oracle.Look.of(parse(contender.name)[1]))
    what = ground.simulation(contender, setting, seed, span_s)
    return ground.measured(simulate(schedule, what), setting)


def parse(name: str) -> tuple[str, dict[str, float]]:
    """`name[key=value,...]` in its parts. Raises ConfigError."""
    found = _FORM.fullmatch(name.strip())
    if found is None:
        raise ConfigError("--policies", name, "write name or name[key=value,...]")
    params: dict[str, float] = {}
    for pair in filter(None, (found[2] or "").split(",")):
        key, _, value = pair.partition("=")
        try:
            params[key.strip()] = float(value)
        except ValueError:
            raise ConfigError("--policies", name, f"{pair!r}: write key=number") from None
    return found[1].strip(), params


# --- one maker per kind ---------------------------------------------------------------------------------------------

Maker = Callable[[str, dict[str, float], Setting, Sequence[Planned]], Contender]


def _makers() -> dict[str, Maker]:
    return {"aggregated": _aggregated, "distserve": _distserve, ORACLE: _oracle}


def _aggregated(name: str, params: dict[str, float], setting: Setting, schedule: Sequence[Planned]) -> Contender:
    note = ""
    if "budget_tokens" not in params:
        budget, note = tune.tuned_budget(setting, schedule)
        params = {**params, "budget_tokens": budget}
    return Contender(name, policy_named(name, params), setting.workers, 0, note)


def _distserve(name: str, params: dict[str, float], setting: Setting, schedule: Sequence[Planned]) -> Contender:
    profile, slo = named(setting.config.engine.profile), ground.slo_of(setting)
    placed = placement.place(profile, slo, setting.workers, schedule, int(params.get("batch_tokens", 0)))
    policy = policy_named(name, {**params, "batch_tokens": placed.batch_tokens})
    return Contender(name, policy, placed.prefill, placed.decode, placed.note)


def _oracle(name: str, params: dict[str, float], setting: Setting, schedule: Sequence[Planned]) -> Contender:
    look = oracle.Look.of(params)
    prefill, decode = setting.workers // 2, setting.workers - setting.workers // 2
    if look.dopd:
        policy = policy_named(f"dopd-{prefill}p{decode}d", {}, ground.ground_of(setting))
        return Contender(name, policy, prefill, decode, look.note, oracle=True)
    contender = Contender(name, static_split(prefill, decode), prefill, decode, oracle=True)
    contender = tune.tuned_split(contender, setting, schedule)
    return replace(contender, note=f"{look.note}; {contender.note}")


def _plain(name: str, params: dict[str, float], setting: Setting, schedule: Sequence[Planned]) -> Contender:
    """A policy with nothing to tune. One without a split of its own begins with the config's where that fits."""
    try:
        policy = policy_named(name, params, ground.ground_of(setting))
    except ConfigError as error:
        if "unknown" not in error.fix:
            raise
        raise ConfigError("--policies", name, f"unknown; use one of {', '.join(names())}") from error
    sizes = setting.config.cluster.sizes
    if policy.first_roles == "mixed":
        sizes = setting.workers, 0
    elif policy.split is not None:
        sizes = policy.split
    elif sum(sizes) != setting.workers or not all(sizes):
        sizes = setting.workers // 2, setting.workers - setting.workers // 2
    contender = Contender(name, policy, *sizes)
    return tune.tuned_split(contender, setting, schedule) if named_split(name) and not params else contender
