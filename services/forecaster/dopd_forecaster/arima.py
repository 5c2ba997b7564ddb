"""Fits of ARIMA (D19): the order with the least AIC of a small grid. The only importer of statsmodels.

Consumes the values of past bins; produces an `Arma`, with which `arma.arima_mean` forecasts for as long as it is
kept. A fit takes some hundred milliseconds: it is made rarely, off the event loop, and within a time budget.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product

from dopd.errors import ConfigError
from dopd_forecaster.arma import Arma
from dopd_forecaster.models import WINDOW

# These matrices are 3 x 3: threads of the linear algebra only wait for each other, which took 12 to 54 times the CPU.
# It reads this when numpy is first imported.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

ORDERS = tuple(
    (p, d, q) for d, p, q in sorted(product((1, 0), (0, 1, 2), (0, 1, 2)), key=lambda o: o[1] + o[2]) if p + q < 4
)
"""Simple ones first, so that a fit that runs out of time has seen the likely ones (workloads.md 2.1)."""
LEAST = 12
"""Fewer values than this and the rule falls back to smoothing (algorithms.md 1.8 has 5, where no AIC holds)."""
SMOOTHING = Arma(difference=1, ma=(-0.7,), reason="short_history")
"""ARIMA(0,1,1) with theta -0.7 is exponential smoothing with alpha 0.3."""
WARNED_AIC = 2.0
"""An order that did not converge counts only if it is better than the others by this."""


def check() -> None:
    """Raises ConfigError where statsmodels is not installed."""
    if find_spec("statsmodels") is None:
        fix = "arima needs statsmodels: pip install 'dopd[forecast]', or take another model"
        raise ConfigError("[forecaster]", "models", fix)


def fit(history: Sequence[float], out_of_time: Callable[[], bool] = lambda: False) -> Arma:
    """The best order on the last 50 finite values. Its `reason` is "" or one of short_history (smoothing instead),
    constant (smoothing, too), not_converged (the best order's optimiser gave up), no_fit (every order failed),
    out_of_time (the best of the orders tried until then).
    """
    seen = [value for value in history if math.isfinite(value)][-WINDOW:]
    if len(seen) < LEAST:
        return SMOOTHING
    centre = sum(seen) / len(seen)
    scale = math.sqrt(sum((value - centre) ** 2 for value in seen) / len(seen))
    if scale <= 1e-9 * abs(centre):
        return Arma(difference=1, reason="constant")
    plain = [(value - centre) / scale for value in seen]  # the optimiser gives up on values far from 0 and 1
    best, best_score, late = Arma(difference=1, ma=(-0.7,), reason="no_fit"), math.inf, False
    for order in ORDERS:
        if late := out_of_time():
            break
        tried = _one(plain, order)
        if tried is None:
            continue
        found, aic = tried
        score = aic + (WARNED_AIC if found.reason else 0.0)
        if score < best_score:
            best, best_score = found, score
    reason = "out_of_time" if late and not best.reason else best.reason
    mean = 0.0 if best.difference else centre + scale * best.mean
    return Arma(best.difference, mean, best.ar, best.ma, reason)


def _one(seen: Sequence[float], order: tuple[int, int, int]) -> tuple[Arma, float] | None:
    """One order's fit and AIC (corrected for few values), None where there is none."""
    from statsmodels.tools.sm_exceptions import ConvergenceWarning
    from statsmodels.tsa.arima.model import ARIMA

    p, d, q = order
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = ARIMA(seen, order=order, trend="n" if d else "c")
            done = model.fit(method_kwargs={"maxiter": 50})
        except (ValueError, ArithmeticError):
            return None  # this order cannot describe these values (numpy's LinAlgError is a ValueError, too)
    numbers = [float(value) for value in done.params]
    aic = float(done.aicc)
    if not all(map(math.isfinite, [*numbers, aic])):
        return None
    failed = any(issubclass(one.category, ConvergenceWarning) for one in said)
    mean = 0.0 if d else numbers.pop(0)
    ar, ma = tuple(numbers[:p]), tuple(numbers[p : p + q])
    return Arma(d, mean, ar, ma, "not_converged" if failed else ""), aic
