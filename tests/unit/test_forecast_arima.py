"""Fits of ARIMA: what order is found, and what is said where there is none."""

import math
from itertools import count

import numpy as np
import pytest
from numpy.random import PCG64, Generator

from dopd.errors import ConfigError
from dopd_forecaster import arima
from dopd_forecaster.arma import Arma, arima_mean

pytest.importorskip("statsmodels")


def autoregressive(share: float, number: int = 50) -> list[float]:
    """Shocks of 1 about 100, of which `share` stays each time."""
    rng, values, value = Generator(PCG64(11)), [], 0.0
    for _ in range(number):
        value = share * value + float(rng.normal())
        values.append(100 + value)
    return values


def test_the_order_with_the_least_aic_is_that_of_statsmodels() -> None:
    from statsmodels.tsa.arima.model import ARIMA

    seen = autoregressive(0.9)
    ticks = count()
    found = arima.fit(seen, lambda: next(ticks) >= 6)
    plain = (np.array(seen) - np.mean(seen)) / np.std(seen)
    by_aic = {
        order: ARIMA(plain, order=order, trend="n" if order[1] else "c").fit(method_kwargs={"maxiter": 50}).aicc
        for order in arima.ORDERS[:6]
    }
    assert found.order == min(by_aic, key=lambda order: by_aic[order])


def test_a_fit_in_other_units_is_the_same_but_for_the_mean() -> None:
    seen = autoregressive(0.8)
    small, large = arima.fit(seen), arima.fit([1024 * value for value in seen])
    assert small.order == large.order
    assert large.mean == pytest.approx(1024 * small.mean)


def test_the_same_history_gives_the_same_fit() -> None:
    seen = autoregressive(0.5)
    assert arima.fit(seen) == arima.fit(seen)


@pytest.mark.parametrize("history", [[], [1.0] * 5, [math.nan] * 50])
def test_with_too_little_history_it_is_smoothing_and_says_so(history: list[float]) -> None:
    found = arima.fit(history)
    assert (found.order, found.reason) == ((0, 1, 1), "short_history")


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_what_never_changes_has_no_order_and_is_forecast_as_it_is(value: float) -> None:
    found = arima.fit([value] * 50)
    assert found.reason == "constant"
    assert arima_mean(found, [value] * 50, 6) == value


def test_out_of_time_the_best_so_far_is_taken_and_says_so() -> None:
    ticks = count()
    found = arima.fit(autoregressive(0.5), lambda: next(ticks) >= 2)
    assert found.reason == "out_of_time" and found.order in arima.ORDERS[:2]
    assert arima.fit(autoregressive(0.5), lambda: True) == Arma(1, ma=(-0.7,), reason="no_fit")


def test_an_optimiser_that_gives_up_is_a_reason_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from statsmodels.tools.sm_exceptions import ConvergenceWarning
    from statsmodels.tsa.arima.model import ARIMA

    real = ARIMA.fit

    def unsure(self: ARIMA, *args: object, **kwargs: object) -> object:
        warnings.warn("did not converge", ConvergenceWarning, stacklevel=2)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ARIMA, "fit", unsure)
    ticks = count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert arima.fit(autoregressive(0.5), lambda: next(ticks) >= 3).reason == "not_converged"


def test_orders_that_cannot_be_fitted_leave_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from numpy.linalg import LinAlgError
    from statsmodels.tsa.arima.model import ARIMA

    def refuse(*args: object, **kwargs: object) -> object:
        raise LinAlgError("singular")

    monkeypatch.setattr(ARIMA, "fit", refuse)
    assert arima.fit(autoregressive(0.5)) == Arma(1, ma=(-0.7,), reason="no_fit")


def test_without_statsmodels_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arima, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dopd\[forecast\]"):
        arima.check()
