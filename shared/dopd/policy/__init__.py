"""Serving systems as pure functions, one file each. `POLICIES` is the list.

A policy outside of it is named `package.module:NAME`, where NAME is a `Policy`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

from dopd.errors import ConfigError
from dopd.policy.base import BudgetSpec, Policy, StepBudget
from dopd.policy.simple import SIMPLE

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (SIMPLE,)}


def policy_named(name: str, params: Mapping[str, float] | None = None) -> Policy:
    """A policy by name or dotted name, its parts made with those of `params` that they take. Raises ConfigError."""
    policy = POLICIES.get(name) or (_attribute(name) if ":" in name else None)
    if not isinstance(policy, Policy):
        raise ConfigError(
            "[policy]", "name", f"{name!r} is unknown; use one of {', '.join(POLICIES)} or package.module:NAME"
        )
    return _with_params(policy, params) if params else policy


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
