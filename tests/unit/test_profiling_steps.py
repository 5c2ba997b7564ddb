"""From step records and output times to measured steps, by hand."""

import pytest

from dopd.engine.contract import StepRecord
from dopd.errors import LoadError
from dopd_loadgen.profiling.steps import Stretch, point, stretches


def test_steps_are_told_apart_by_what_each_job_has_left() -> None:
    records = [StepRecord(1, {"a": 10}), StepRecord(2, {"a": 1, "b": 5}, 1), StepRecord(3, {"a": 1, "b": 1}, 2)]
    prompt, mixed, decode = stretches({"a": 10, "b": 5}, records, [1.0, 1.5, 1.75], 0.0)
    assert prompt == Stretch(1, 10, 100, 1, 0, 0, 1.0, {"a"})
    assert mixed == Stretch(1, 5, 25, 1, 1, 11, 0.5, {"b"})
    assert decode == Stretch(1, 0, 0, 0, 2, 12 + 6, 0.25, set())
    assert [each.phase for each in (prompt, mixed, decode)] == ["prefill", "mixed", "decode"]


def test_chunks_without_output_are_counted_with_the_one_that_has_it() -> None:
    records = [StepRecord(1, {"a": 8}), StepRecord(2, {"a": 8}), StepRecord(3, {"a": 4})]
    (all_three,) = stretches({"a": 20}, records, [3.0], 0.0)
    assert (all_three.steps, all_three.prompt_tokens, all_three.prompt_square_tokens2) == (3, 20, 400)
    mean = point([all_three])
    assert mean.prompt_tokens == pytest.approx(20 / 3)
    assert mean.prompt_square_tokens2 == pytest.approx(400 / 3)
    assert (mean.batch_requests, mean.latency_s) == (1, 1.0)


def test_a_point_is_the_mean_step_of_its_stretches() -> None:
    mean = point([Stretch(1, 0, 0, 0, 4, 100, 0.010), Stretch(1, 0, 0, 0, 4, 104, 0.012)])
    assert (mean.phase, mean.batch_requests, mean.context_tokens) == ("decode", 4, 102)
    assert mean.latency_s == pytest.approx(0.011)


def test_steps_of_two_phases_make_no_point() -> None:
    with pytest.raises(ValueError):
        point([Stretch(1, 5, 25, 1), Stretch(1, decodes=1, context_tokens=6)])


@pytest.mark.parametrize("times_s", [[], [1.0, 2.0]])
def test_outputs_that_do_not_fit_the_records_are_refused(times_s: list[float]) -> None:
    with pytest.raises(LoadError, match="1 steps with output"):
        stretches({"a": 10}, [StepRecord(1, {"a": 10})], times_s, 0.0)


def test_work_of_somebody_else_is_refused() -> None:
    with pytest.raises(LoadError, match="other jobs"):
        stretches({"a": 10}, [StepRecord(1, {"a": 10, "z": 3})], [1.0], 0.0)
