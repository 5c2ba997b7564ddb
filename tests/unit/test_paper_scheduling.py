"""Where the released scheduling puts a request: here or there, on whom, and in which order."""

from dataclasses import replace

from dopd.cluster import ClusterView, WorkerView
from dopd.config import Config, ForecasterConfig
from dopd.policy import POLICIES, budget_from, forecaster_of, planner_of, policy_named
from dopd.policy.base import Dispatch, RequestView, Role, StepView, WaitingView
from dopd.policy.dopd_paper import Remote
from dopd.policy.dyn_sla import AlwaysRemote
from dopd.slo import Slo


def a_worker(name: str, role: Role, **more: object) -> WorkerView:
    fields = {"incarnation": "i", "epoch": 0, "serving": True, "credit": 40, "kv_total_tokens": 100} | more
    return WorkerView(name, role=role, **fields)  # type: ignore[arg-type]


def a_request(number: int, isl_tokens: int, **more: object) -> RequestView:
    fields = {"max_new_tokens": 50, "priority": 0, "arrived_s": float(number), "uncached_tokens": isl_tokens} | more
    return RequestView(f"r{number}", isl_tokens, osl_tokens=50.0, osl_std_tokens=0.0, slo=Slo(), **fields)  # type: ignore[arg-type]


P1, P2 = a_worker("p1", "prefill"), a_worker("p2", "prefill")
D1, D2, D3 = (a_worker(name, "decode") for name in ("d1", "d2", "d3"))


def placed(
    scheduler: Remote, workers: list[WorkerView], requests: list[RequestView], room: int = 1 << 20, state: str = ""
) -> list[tuple[str, ...]]:
    """Workers of each placement, in the order of the dispatches."""
    cluster = ClusterView(tuple(workers), {"": room})
    _, dispatches, _ = scheduler.step(state, requests, cluster, 0.0)
    return [on(dispatch) for dispatch in dispatches]


def on(dispatch: Dispatch) -> tuple[str, ...]:
    (placement,) = dispatch.placements
    return tuple(str(plan.worker_id) for plan in placement.segments)


def test_a_prompt_of_511_tokens_is_computed_where_it_is_decoded_and_a_longer_one_is_not() -> None:
    requests = [a_request(1, 511), a_request(2, 512), a_request(3, 2000, uncached_tokens=500)]
    assert placed(Remote(), [P1, D1], requests) == [("d1",), ("p1", "d1"), ("d1",)]
    assert placed(AlwaysRemote(), [P1, D1], requests) == [("p1", "d1")] * 3


def test_beyond_sixteen_in_the_prefill_queue_prompts_are_computed_where_they_are_decoded() -> None:
    requests = [a_request(number, 1000) for number in range(20)]
    assert placed(Remote(), [P1, D1], requests) == [("p1", "d1")] * 16 + [("d1",)] * 4
    waiting = replace(P1, waiting=14)
    assert placed(Remote(), [waiting, D1], requests).count(("p1", "d1")) == 2
    assert placed(AlwaysRemote(), [waiting, D1], requests) == [("p1", "d1")] * 20


def test_decode_workers_are_chosen_by_memory_and_waiting_or_in_turn() -> None:
    used = [P1, replace(D1, kv_used_tokens=60), D2, replace(D3, waiting=5)]
    requests = [a_request(number, 100) for number in range(4)]
    assert placed(Remote(), used, requests)[0] == ("d2",)
    assert [on_[0] for on_ in placed(Remote(kv_aware=0), used, requests)] == ["d1", "d2", "d3", "d1"]
    assert [on_[0] for on_ in placed(Remote(kv_aware=0), used, requests, state="d2")] == ["d3", "d1", "d2", "d3"]


def test_prompts_go_to_the_prefill_worker_with_the_least_to_compute() -> None:
    requests = [a_request(1, 4000), a_request(2, 1000), a_request(3, 1000)]
    assert [on_[0] for on_ in placed(AlwaysRemote(), [P1, P2, D1], requests)] == ["p1", "p2", "p2"]


def test_without_a_place_to_decode_nothing_is_computed_and_nobody_overtakes() -> None:
    requests = [a_request(1, 1000), a_request(2, 100)]
    assert placed(Remote(), [P1, replace(D1, credit=0)], requests) == []
    assert placed(Remote(), [replace(P1, credit=0), D1], requests) == []
    assert placed(Remote(), [P1, D1], requests, room=999) == []


def test_a_single_token_is_the_prefill_workers_and_stored_prompts_only_need_a_place() -> None:
    assert placed(Remote(), [P1, D1], [a_request(1, 1000, max_new_tokens=1)]) == [("p1",)]
    assert placed(Remote(), [P1, D1], [a_request(1, 1000, kv_tokens=999, uncached_tokens=1)]) == [("d1",)]


def test_a_step_computes_one_whole_prompt_and_beside_decodes_a_local_one() -> None:
    assert POLICIES["dopd-paper"].budget is not None
    budget = budget_from(POLICIES["dopd-paper"].budget)
    waiting = [WaitingView("a", 9000, 0.0), WaitingView("b", 10, 0.0)]
    view = StepView(0, 0, 0, False, waiting, max_tokens=8192, max_running=256)
    assert budget.limit(None, view)[1].max_running == 1
    assert budget.limit(None, view)[1].max_tokens is None
    assert budget.limit(None, replace(view, prefills=1))[1].gate == "closed"
    assert budget.limit(None, replace(view, decodes=7))[1].max_tokens == 7 + 512


# --- what the policies are made of ------------------------------------------------------------------------------------


def test_cold_starts_belong_to_the_policy_or_come_by_a_parameter() -> None:
    assert POLICIES["dopd-paper"].starts is not None and POLICIES["dopd-paper"].starts() == {}
    assert POLICIES["dopd-coldstart"].starts is not None
    assert POLICIES["dopd-coldstart"].starts() == {"prefill": 30.0, "decode": 45.0}
    for name in ("dyn-load", "dyn-sla", "dopd-paper"):
        made = policy_named(name, {"cold": 1.0, "decode_start_s": 5.0})
        assert made.starts is not None and made.starts() == {"prefill": 30.0, "decode": 5.0}


def test_the_papers_forecaster_is_arima_unless_the_config_names_models() -> None:
    assert forecaster_of(POLICIES["dopd-paper"], Config()).models == ("arima",)
    assert forecaster_of(POLICIES["dyn-load"], Config()) == ForecasterConfig()
    named = Config(forecaster=ForecasterConfig(models=("ses",), bin_s=5.0))
    assert forecaster_of(POLICIES["dopd-paper"], named) == named.forecaster


def test_a_command_waits_for_the_start_that_it_asks_for() -> None:
    assert planner_of(POLICIES["dopd-paper"], Config()) == Config().planner
    assert planner_of(POLICIES["dopd-coldstart"], Config()).command_timeout_s == 60.0 + 45.0
