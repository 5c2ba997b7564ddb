"""Token buckets: how many requests of one key pass."""

import pytest

from dopd.errors import TooManyRequests
from dopd_gateway.rate import MOST_KEYS, Rates


def passed(rates: Rates, key: str, at_s: float) -> bool:
    try:
        rates.take(key, at_s)
    except TooManyRequests:
        return False
    return True


def test_a_burst_passes_and_then_the_rate() -> None:
    rates = Rates(2.0, 3)
    assert [passed(rates, "k", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [passed(rates, "k", 10.5), passed(rates, "k", 10.5)] == [True, False]
    assert [passed(rates, "k", 60.0) for _ in range(4)] == [True, True, True, False]


def test_who_waits_as_long_as_told_passes() -> None:
    rates = Rates(0.5, 1)
    rates.take("k", 0.0)
    with pytest.raises(TooManyRequests) as caught:
        rates.take("k", 0.5)
    assert caught.value.retry_after_s == pytest.approx(1.5)
    rates.take("k", 2.0)


def test_keys_do_not_pay_for_each_other() -> None:
    rates = Rates(1.0, 1)
    assert passed(rates, "a", 0.0) and passed(rates, "b", 0.0) and not passed(rates, "a", 0.0)


def test_without_a_limit_everything_passes() -> None:
    rates = Rates(0.0, 1)
    assert all(passed(rates, "k", 0.0) for _ in range(1000))


def test_invented_keys_do_not_fill_the_memory() -> None:
    rates = Rates(1.0, 1)
    for number in range(MOST_KEYS + 50):
        rates.take(str(number), 0.0)
    assert len(rates._buckets) == MOST_KEYS
