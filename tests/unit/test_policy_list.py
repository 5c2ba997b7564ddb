"""Policies by name, and their parameters from the config file."""

import pytest

from dopd.config import Config, EngineConfig
from dopd.errors import ConfigError
from dopd.policy import POLICIES, budget_from, policy_named, policy_of
from dopd.policy.base import Policy
from tests.policies.bucket import BUCKET, Buckets
from tests.policies.dyna import DYNA, LatencyBudget


class Planning:
    """A planner with a parameter of its own and one that it shares."""

    def __init__(self, band: float = 0.1, step_s: float = 0.0) -> None:
        self.given = (band, step_s)


def test_a_policy_is_named_by_the_list_or_by_its_module() -> None:
    assert policy_named("simple") is POLICIES["simple"]
    assert policy_named("tests.policies.dyna:DYNA") is DYNA


@pytest.mark.parametrize(
    "name", ["", "nobody", "tests.policies.dyna:NOBODY", "tests.nowhere:DYNA", "tests.policies.dyna:GPU"]
)
def test_an_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        policy_named(name)


def test_each_part_gets_the_parameters_that_it_takes() -> None:
    whole = Policy("whole", Buckets, DYNA.budget, Planning)  # type: ignore[arg-type]
    POLICIES["whole"] = whole
    try:
        policy = policy_named("whole", {"step_tokens": 100.0, "step_s": 0.5})
    finally:
        del POLICIES["whole"]
    assert policy.scheduler()._step_tokens == 100  # type: ignore[attr-defined]
    assert policy.planner().given == (0.1, 0.5)  # type: ignore[attr-defined, misc]
    assert policy.budget is not None
    budget = budget_from(policy.budget)
    assert isinstance(budget, LatencyBudget) and budget._step_s == 0.5
    assert budget_from(DYNA.budget)._step_s == 0.04  # type: ignore[arg-type, attr-defined]


def test_a_parameter_that_no_part_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour"):
        policy_named("tests.policies.bucket:BUCKET", {"colour": 1.0})
    assert policy_named("tests.policies.bucket:BUCKET", {}) is BUCKET


def test_limits_of_a_real_engine_are_the_config_s_and_of_an_emulated_one_the_profile_s() -> None:
    found = {}
    for kind in ("vllm", "sim"):
        engine = EngineConfig(kind=kind, profile="cpu-tiny-llama", max_running=5)  # type: ignore[arg-type]
        ground = policy_of(Config(engine=engine)).scheduler.keywords["ground"]  # type: ignore[attr-defined]
        found[kind] = (ground.profile.max_running, ground.profile.max_step_tokens)
    assert found == {"vllm": (5, 512), "sim": (16, 512)}
