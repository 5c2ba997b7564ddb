"""The order of a comparison, with runs whose attainment is a known function of the rate and that end in any order."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from dopd.config import Config
from dopd.policy import policy_named
from dopd_loadgen.compare.campaign import Campaign, telling_rate
from dopd_loadgen.compare.model import Contender, Setting
from dopd_loadgen.compare.result import Comparison, Wanted, encoded
from dopd_loadgen.compare.tasks import Limit, Measure, Scout, Task, Tune
from dopd_loadgen.workload import WorkloadSpec
from tests.compare_runs import bound, comparison, load, row

KNEES = {"static-1p1d": 6.0, "aggregated[budget_tokens=2048]": 10.0, "simple": 6.0, "aggregated": 12.0}


def performed(task: Task) -> Any:
    if isinstance(task, Tune):
        return Contender(
            task.policy, policy_named("simple"), 1, 1, f"tuned at {task.spec.rate_scale} seed {task.spec.seed}"
        )
    if isinstance(task, Limit):
        return load(task.spec.rate_scale, task.spec.seed), bound(task.spec.rate_scale, task.spec.seed)
    case = task.case
    assert (task.spec.rate_scale, task.spec.seed) == (case.rate_scale, case.seed), "the load is the case's"
    share = 1 / (1 + (case.rate_scale / KNEES[case.policy] / (1 + 0.02 * case.seed % 1)) ** 6)
    if isinstance(task, Scout):
        return share
    return row(case.policy, case.rate_scale, case.seed, share * 10 * case.rate_scale, attainment=share), None


class Mixed:
    """Works tasks off in an order of its own."""

    def __init__(self, seed: int, most: int = 10**6) -> None:
        self.rng, self.most, self.tasks = random.Random(seed), most, list[Task]()

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        numbers = list(range(len(tasks)))
        self.rng.shuffle(numbers)
        for number in numbers:
            if len(self.tasks) == self.most:
                raise KeyboardInterrupt
            self.tasks.append(tasks[number])
            yield number, performed(tasks[number])


def campaign(
    work: Mixed, rates: Sequence[float] = (), seeds: Sequence[int] = (0, 1), targets: Sequence[float] = ()
) -> Campaign:
    values = {name: getattr(comparison().config, name) for name in Wanted.__struct_fields__}
    values |= {
        "policies": ["simple", "aggregated"],
        "rates": list(rates),
        "seeds": list(seeds),
        "targets": list(targets),
    }
    wanted = Wanted(**values)
    config = Config()
    name, profile = next(iter(wanted.traces)), next(iter(wanted.profiles))
    spec = WorkloadSpec(name, duration_s=60.0)
    return Campaign(wanted, {name: spec}, {profile: Setting(config, 2)}, work, lambda *_: None)


def result(made: Campaign) -> Comparison:
    made.run()
    return made.comparison()


def test_the_result_does_not_depend_on_which_run_ends_first() -> None:
    one, other = (encoded(result(campaign(Mixed(seed), targets=[0.9, 0.99]))) for seed in (1, 2))
    assert one == other


def test_rates_reach_from_where_all_are_well_to_where_the_best_fails() -> None:
    found = result(campaign(Mixed(0)))
    rates = sorted({one.rate_scale for one in found.rows})
    assert len(rates) == 7
    by_rate = {rate: [one.attainment for one in found.rows if one.rate_scale == rate] for rate in rates}
    assert min(by_rate[rates[0]]) > 0.97 and max(by_rate[rates[-1]]) < 0.8
    assert {seed for one in found.rows for seed in [one.seed]} == {0, 1}, "scouts are no rows"


def test_policies_are_tuned_near_the_knee_with_a_seed_that_is_not_measured() -> None:
    work = Mixed(0)
    found = result(campaign(work))
    tuned = [task for task in work.tasks if isinstance(task, Tune) and task.policy in ("simple", "aggregated")]
    assert len(tuned) == 2
    for task in tuned:
        assert task.spec.seed not in found.config.seeds
        assert 4.0 < task.spec.rate_scale < 10.0
    assert [one.tune_rate for one in found.prepared] == [task.spec.rate_scale for task in tuned]


def test_every_policy_gets_the_same_loads() -> None:
    work = Mixed(3)
    result(campaign(work, rates=[2.0, 8.0]))
    loads = {
        policy: {t.spec for t in work.tasks if isinstance(t, Measure) and t.case.policy == policy}
        for policy in ("simple", "aggregated")
    }
    assert loads["simple"] == loads["aggregated"] and len(loads["simple"]) == 4


def test_the_search_finds_each_policy_s_largest_rate_and_runs_no_case_twice() -> None:
    work = Mixed(0)
    found = result(campaign(work, rates=[2.0, 8.0], seeds=[0], targets=[0.9, 0.99]))
    cases = [task.case for task in work.tasks if isinstance(task, Measure)]
    assert len(cases) == len(set(cases))
    for one in found.goodput:
        truth = KNEES[one.policy] * ((1 - one.target) / one.target) ** (1 / 6)
        assert one.kind == "found" and one.rate_scale <= truth * 1.001 and truth <= one.rate_scale * 1.031
        assert (one.rate_scale, pytest.approx(one.target, abs=0.05)) in [(rate, share) for rate, share in one.probed]
    assert {one.rate_scale for one in found.rows} == {2.0, 8.0}, "probes are no rows"


def test_what_was_finished_before_an_interruption_is_kept() -> None:
    work = Mixed(0, most=7)
    made = campaign(work, rates=[2.0, 8.0])
    made.wanted = msgspec.structs.replace(made.wanted, tune_rate=2.0)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    kept = made.comparison(interrupted=True)
    assert kept.interrupted and len(kept.loads) == 2
    measured = {task.case for task in work.tasks if isinstance(task, Measure)}
    assert len(kept.rows) == len(measured) == 3


def test_pictures_are_of_the_rate_at_which_policies_lie_farthest_apart() -> None:
    assert telling_rate(comparison().rows) == 2.0
    assert telling_rate([]) is None
