"""Serving systems as pure functions, one file each. `POLICIES` is the list.

Beside it there is every `static-<n>p<m>d`, a split of n prefill and m decode workers. A policy outside of both is named
`package.module:NAME`, where NAME is a `Policy`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

from dopd.errors import ConfigError
from dopd.policy.aggregated import AGGREGATED
from dopd.policy.base import BudgetSpec, Policy, StepBudget
from dopd.policy.distserve import DISTSERVE
from dopd.policy.simple import SIMPLE
from dopd.policy.static_split import named_split, static_split

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (SIMPLE, AGGREGATED, DISTSERVE)}
ORACLE = "oracle-ratio"


def policy_named(name: str, params: Mapping[str, float] | None = None) -> Policy:
    """A policy by name or dotted name, its parts made with those of `params` that they take. Raises ConfigError."""
    if name == ORACLE:
        raise ConfigError("[policy]", "name", f"{name} looks into the future: it exists in `dopd compare` alone")
    split = named_split(name)
    policy = static_split(*split) if split else POLICIES.get(name) or (_attribute(name) if ":" in name else None)
    if not isinstance(policy, Policy):
        known = ", ".join([*POLICIES, "static-<n>p<m>d"])
        raise ConfigError("[policy]", "name", f"{name!r} is unknown; use one of {known} or package.module:NAME")
    return _with_params(policy, params) if params else policy


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


def _with_params(policy: Policy, params: Mapping[str, float]) -> Policy:
    parts: list[Callable[..., Any] | None] = [policy.scheduler, policy.planner]
    if policy.budget is not None:
        parts.append(_attribute(policy.budget.target))
    taken = [
        {key: params[key] for key in signature(part).parameters if key in params} if part else {} for part in parts
    ]
    if unknown := params.keys() - {key for given in taken for key in given}:
        raise ConfigError("[policy]", "params", f"{policy.name} does not know {', '.join(sorted(unknown))}")
    budget = policy.budget and replace(policy.budget, params={**policy.budget.params, **taken[2]})
    planner = policy.planner and partial(policy.planner, **taken[1])
    return replace(policy, scheduler=partial(policy.scheduler, **taken[0]), budget=budget, planner=planner)


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
