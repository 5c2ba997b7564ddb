"""Serving systems as pure functions, one file each. `POLICIES` is the list.

Beside it there is every `static-<n>p<m>d`, a split of n prefill and m decode workers. A policy outside of both is named
`package.module:NAME`, where NAME is a `Policy`.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any, TypeVar

import msgspec

from dopd.config import Config, EngineConfig, ForecasterConfig, PlannerConfig
from dopd.errors import ConfigError
from dopd.perf.profile import Profile, named
from dopd.policy.aggregated import AGGREGATED
from dopd.policy.base import BudgetSpec, Ground, Policy, StepBudget
from dopd.policy.distserve import DISTSERVE
from dopd.policy.dopd import DOPD, fixed_split, named_fixed
from dopd.policy.dopd_paper import DOPD_COLDSTART, DOPD_PAPER
from dopd.policy.dyn_load import DYN_LOAD
from dopd.policy.dyn_sla import DYN_SLA
from dopd.policy.simple import SIMPLE
from dopd.policy.static_split import named_split, static_split
from dopd.slo import Slo

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (SIMPLE, AGGREGATED, DISTSERVE, DOPD, DOPD_PAPER, DOPD_COLDSTART, DYN_SLA, DYN_LOAD)
}
ORACLE = "oracle-ratio"
T = TypeVar("T")


def policy_named(name: str, params: Mapping[str, float] | None = None, ground: Ground | None = None) -> Policy:
    """A policy by name or dotted name, its parts made with those of `params` that they take. Raises ConfigError.

    Parts that ask for the `ground` are given it (None: the default one).
    """
    if name == ORACLE:
        raise ConfigError("[policy]", "name", f"{name} looks into the future: it exists in `dopd compare` alone")
    policy = _split(name) or POLICIES.get(name) or (_attribute(name) if ":" in name else None)
    if not isinstance(policy, Policy):
        known = ", ".join([*POLICIES, "static-<n>p<m>d", "dopd-<n>p<m>d"])
        raise ConfigError("[policy]", "name", f"{name!r} is unknown; use one of {known} or package.module:NAME")
    return _on(_with_params(policy, params) if params else policy, ground or Ground())


def _split(name: str) -> Policy | None:
    if split := named_split(name):
        return static_split(*split)
    return fixed_split(*split) if (split := named_fixed(name)) else None


def policy_of(config: Config) -> Policy:
    """The policy that a config names, on the profile and the targets that it names. Raises ConfigError."""
    slo = Slo(config.slo.ttft_s, config.slo.tpot_s)
    return policy_named(config.policy.name, config.policy.params, Ground(_profile_of(config.engine), slo))


def _profile_of(engine: EngineConfig) -> Profile:
    """The engine as policies know it. What a config limits in a real engine is not its profile's to say."""
    profile = named(engine.profile)
    if engine.kind != "vllm":
        return profile
    limits = {name: getattr(engine, name) for name in ("max_running", "max_step_tokens", "max_model_len")}
    return replace(profile, **{name: limit for name, limit in limits.items() if limit})


def sizes(policy: Policy, given: tuple[int, int], default: tuple[int, int]) -> tuple[int, int]:
    """(prefill, decode) workers to begin with: the policy's own split goes before the config's default.

    Raises ConfigError where sizes that are `given` contradict it.
    """
    if policy.split is None or policy.split == given:
        return given
    if given != default:
        wanted, there = (f"prefill = {prefill}, decode = {decode}" for prefill, decode in (policy.split, given))
        raise ConfigError(
            "[cluster]", "prefill, decode", f"{there} contradicts {policy.name}; give {wanted}, or neither"
        )
    return policy.split


def forecaster_of(policy: Policy, config: Config) -> ForecasterConfig:
    """The forecaster's config: with the models that the policy names, unless the config names some."""
    given = config.forecaster
    if not policy.forecast_models or given.models != ForecasterConfig().models:
        return given
    return msgspec.structs.replace(given, models=policy.forecast_models)


def planner_of(policy: Policy, config: Config) -> PlannerConfig:
    """The ratio-planner's config: a role that takes time to start gives its command as much more time."""
    given, starts = config.planner, policy.starts() if policy.starts is not None else {}
    longest_s = max(starts.values(), default=0.0)
    return msgspec.structs.replace(given, command_timeout_s=given.command_timeout_s + longest_s) if longest_s else given


def _with_params(policy: Policy, params: Mapping[str, float]) -> Policy:
    budget_part = None if policy.budget is None else _attribute(policy.budget.target)
    parts: list[Callable[..., Any] | None] = [policy.scheduler, policy.planner, policy.starts, budget_part]
    taken = [
        {key: params[key] for key in signature(part).parameters if key in params} if part else {} for part in parts
    ]
    if unknown := params.keys() - {key for given in taken for key in given}:
        raise ConfigError("[policy]", "params", f"{policy.name} does not know {', '.join(sorted(unknown))}")
    budget = policy.budget and replace(policy.budget, params={**policy.budget.params, **taken[3]})
    planner = policy.planner and partial(policy.planner, **taken[1])
    starts = policy.starts and partial(policy.starts, **taken[2])
    return replace(
        policy, scheduler=partial(policy.scheduler, **taken[0]), budget=budget, planner=planner, starts=starts
    )


def _on(policy: Policy, ground: Ground) -> Policy:
    scheduler, planner, budget = _grounded(policy.scheduler, ground), policy.planner, policy.budget
    planner = planner and _grounded(planner, ground)
    if budget is not None:
        known = {**_numbers(ground.profile), "ttft_s": ground.slo.ttft_s, "tpot_s": ground.slo.tpot_s}
        asked = signature(_attribute(budget.target)).parameters.keys() & known.keys()
        params = {**{name: known[name] for name in sorted(asked)}, **budget.params}
        budget = replace(budget, params=params) if asked else budget
    if (scheduler, planner, budget) == (policy.scheduler, policy.planner, policy.budget):
        return policy
    return replace(policy, scheduler=scheduler, planner=planner, budget=budget)


def _grounded(part: Callable[..., T], ground: Ground) -> Callable[..., T]:
    return partial(part, ground=ground) if "ground" in signature(part).parameters else part


def _numbers(profile: Profile) -> dict[str, float]:
    values = ((field.name, getattr(profile, field.name)) for field in fields(profile))
    return {name: float(value) for name, value in values if isinstance(value, int | float)}


def budget_from(spec: BudgetSpec) -> StepBudget:
    """The budget that a spec names. Raises ConfigError when it cannot be had."""
    budget: StepBudget = _attribute(spec.target)(**spec.params)
    return budget


def _attribute(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError("[policy]", dotted, f"cannot be imported ({error}); use package.module:NAME") from error
