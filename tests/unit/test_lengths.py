"""What is thought of the length of answers: nothing but the limit at first, then the mean of those that ended."""

import random
import statistics

import pytest

from dopd_gateway.lengths import MEMORY, Lengths


def test_before_an_answer_has_ended_its_limit_is_all_that_is_known() -> None:
    assert Lengths().to_come(3, 17) == (17.0, 0.0)


def test_the_mean_and_spread_are_those_of_the_answers() -> None:
    rng = random.Random("answers")
    seen, lengths = [rng.randrange(1, 400) for _ in range(MEMORY)], Lengths()
    for osl_tokens in seen:
        lengths.saw(osl_tokens)
    mean, std = lengths.to_come(0, 4096)
    assert mean == pytest.approx(statistics.mean(seen))
    assert std == pytest.approx(statistics.pstdev(seen))


def test_old_answers_are_forgotten() -> None:
    lengths = Lengths()
    for osl_tokens in [1000] * 500 + [20] * 5 * MEMORY:
        lengths.saw(osl_tokens)
    assert lengths.to_come(0, 4096)[0] == pytest.approx(20, rel=0.5)


def test_what_was_sent_is_not_to_come_and_something_always_is() -> None:
    lengths = Lengths()
    lengths.saw(100)
    assert lengths.to_come(40, 4096) == (60.0, 0.0)
    assert lengths.to_come(150, 4096) == (1.0, 0.0)
