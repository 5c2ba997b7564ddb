"""Serving systems as pure functions, one file each. `POLICIES` is the list.

A policy outside of it is named `package.module:NAME`, where NAME is a `Policy`.
"""

from importlib import import_module
from typing import Any

from dopd.errors import ConfigError
from dopd.policy.base import BudgetSpec, Policy, StepBudget
from dopd.policy.simple import SIMPLE

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (SIMPLE,)}


def policy_named(name: str) -> Policy:
    """A policy by name or dotted name. Raises ConfigError with the list."""
    if name in POLICIES:
        return POLICIES[name]
    policy = _attribute(name) if ":" in name else None
    if not isinstance(policy, Policy):
        raise ConfigError(
            "[policy]", "name", f"{name!r} is unknown; use one of {', '.join(POLICIES)} or package.module:NAME"
        )
    return policy


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
