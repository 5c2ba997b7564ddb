"""`Forecaster`: takes in the windows of all gateways and publishes a `Forecast` per horizon whenever a bin is complete.

Consumes `ArrivalWindow`s and `OutcomeWindow`s; produces `Forecast`s. Fits of ARIMA run outside of the event loop; the
parameters found are used until the next ones are there.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from dopd.bus import Bus, Delivery, Subscription
from dopd.config import ForecasterConfig
from dopd.errors import ConfigError
from dopd.obs.log import get_logger
from dopd.obs.telemetry import Begun, Tracing, begin
from dopd.perf.profile import Profile
from dopd.runtime.clock import Runtime
from dopd_forecaster import core
from dopd_forecaster.arma import ARIMA, Arma
from dopd_forecaster.models import MODELS
from dopd_forecaster.series import SERIES, Series
from dopd_proto.subjects import ARRIVALS, FORECAST, OUTCOMES
from dopd_proto.telemetry import ArrivalWindow, Forecast, OutcomeWindow


class Forecaster:
    """One forecaster process. Raises ConfigError for a model or horizon that there is not."""

    def __init__(
        self,
        bus: Bus,
        runtime: Runtime,
        config: ForecasterConfig,
        profile: Profile,
        decode_profile: Profile | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`profile` turns prompts into work, `decode_profile` (the same, unless given) what follows them."""
        self._bus, self._runtime, self._config = bus, runtime, config
        series = Series(config.bin_s, profile, decode_profile or profile, config.short_tokens)
        self._state = core.Forecaster(series, horizons_bins(config), checked_models(config.models))
        self._tracing = tracing
        self._windows: list[str] = []
        self._subscriptions: list[Subscription] = []
        self._fitting: asyncio.Task[None] | None = None
        self._fitted_bin: int | None = None
        self.refused: Counter[str] = Counter()
        self.said: dict[float, Forecast] = {}
        self._log = get_logger()

    async def start(self) -> None:
        """Listen."""
        self._subscriptions = [
            await self._bus.subscribe(OUTCOMES.at(), self._on_outcomes),
            await self._bus.subscribe(ARRIVALS.at(), self._on_arrivals),
        ]

    async def stop(self) -> None:
        """Stop listening; a fit under way is left to itself."""
        for subscription in self._subscriptions:
            await subscription.stop()
        if self._fitting is not None:
            self._fitting.cancel()

    @property
    def arrivals_per_s(self) -> float | None:
        """What came in the last complete bin; None before the first, and where no gateway told."""
        if self._state.series.next_bin is None:
            return None
        last = self._state.series.values("requests_per_s")[-1:]
        return last[0] if last and not math.isnan(last[0]) else None

    def _on_outcomes(self, delivery: Delivery[OutcomeWindow]) -> None:
        window = delivery.message
        self._note(self._state.series.add_outcomes(window, self._runtime.now()), window)

    def _on_arrivals(self, delivery: Delivery[ArrivalWindow]) -> None:
        window, now_s = delivery.message, self._runtime.now()
        self._note(self._state.series.add_arrivals(window, now_s), window)
        self._windows.append(window.traceparent)
        if made := core.advance(self._state, now_s):
            self._publish(made, now_s)
        if ARIMA in self._config.models and self._fit_due():
            self._fitting = asyncio.create_task(self._fit())

    def _publish(self, made: Sequence[Forecast], began_s: float) -> None:
        """Their span is a part of the window that came last, and linked to the others that they were made from."""
        about = {"dopd.model": made[-1].model, "dopd.requests_per_s": made[-1].requests_per_s}
        span = begin(self._tracing, Begun("forecast", began_s, about), self._windows[-1], self._windows[:-1])
        self._windows = []
        for forecast in made:
            told = msgspec.structs.replace(forecast, traceparent=span.traceparent)
            self.said[told.horizon_s] = told
            self._bus.publish(FORECAST.at(), told)
        span.end(self._runtime.now())

    def _note(self, reason: str, window: ArrivalWindow | OutcomeWindow) -> None:
        """Count a window that was refused; the first of each reason is worth a line."""
        if reason:
            self.refused[reason] += 1
            say = self._log.warning if self.refused[reason] == 1 else self._log.debug
            say("window_refused", reason=reason, gateway_id=window.gateway_id, start_s=window.start_s,
                end_s=window.end_s)  # fmt: skip

    # --- ARIMA --------------------------------------------------------------------------------------------------

    def _fit_due(self) -> bool:
        closed = self._state.series.next_bin
        running = self._fitting is not None and not self._fitting.done()
        if closed is None or running:
            return False
        return self._fitted_bin is None or closed - self._fitted_bin >= self._config.refit_bins

    async def _fit(self) -> None:
        """All series anew, one after the other, until the budget is used up; those left over keep what they have.

        The one whose turn comes first changes from fit to fit, so that a small budget starves none.
        """
        from dopd_forecaster import arima

        series = self._state.series
        assert series.next_bin is not None, "there is something to fit"
        first_time = self._fitted_bin is None
        self._fitted_bin = series.next_bin
        turn = self._fitted_bin // self._config.refit_bins % len(SERIES)
        until_s = self._runtime.now() + self._config.refit_budget_s
        for name in SERIES[turn:] + SERIES[:turn]:
            history = series.values(name)
            if self._runtime.now() >= until_s and not first_time:
                self._log.debug("fit_put_off", series=name)
                continue
            found: Arma = await self._runtime.compute(
                lambda history=history: arima.fit(history, lambda: self._runtime.now() >= until_s)  # type: ignore[misc]
            )
            if found.reason == "no_fit" and name in self._state.fits:
                found = self._state.fits[name]  # an older fit is better than none
            self._state.fits[name] = found
            self._log.debug("arima_fitted", series=name, order=found.order, reason=found.reason)


def horizons_bins(config: ForecasterConfig) -> tuple[int, ...]:
    """In bins. Raises ConfigError for one that is no multiple of a bin."""
    found = []
    for horizon_s in config.horizons_s:
        bins = round(horizon_s / config.bin_s)
        if bins < 1 or abs(bins * config.bin_s - horizon_s) > 1e-6 * horizon_s:
            fix = f"{horizon_s:g} is no multiple of bin_s = {config.bin_s:g}"
            raise ConfigError("[forecaster]", "horizons_s", fix)
        found.append(bins)
    if not found:
        raise ConfigError("[forecaster]", "horizons_s", "is empty; give at least one horizon")
    return tuple(sorted(set(found)))


def checked_models(models: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ConfigError with the list for a name that there is not."""
    known = (*MODELS, ARIMA)
    for model in models:
        if model not in known:
            raise ConfigError("[forecaster]", "models", f"no model {model!r}; known: {', '.join(known)}")
    if not models:
        raise ConfigError("[forecaster]", "models", f"is empty; known: {', '.join(known)}")
    if ARIMA in models:
        from dopd_forecaster import arima  # statsmodels takes seconds to import, and not everybody has it

        arima.check()
    return tuple(dict.fromkeys(models))
