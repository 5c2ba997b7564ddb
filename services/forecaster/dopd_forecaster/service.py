"""`Forecaster`: folds arrival windows as they come and publishes a `Forecast` after each."""

from dopd.bus import Bus, Delivery, Subscription
from dopd.config import ForecasterConfig
from dopd.runtime.clock import Runtime
from dopd_forecaster import core
from dopd_proto.subjects import ARRIVALS, FORECAST
from dopd_proto.telemetry import ArrivalWindow


class Forecaster:
    """One forecaster process. A gateway that has been silent for three horizons no longer counts."""

    def __init__(self, bus: Bus, runtime: Runtime, config: ForecasterConfig) -> None:
        self._bus, self._runtime, self._config = bus, runtime, config
        self._levels: dict[str, tuple[core.Level, float]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen."""
        self._subscription = await self._bus.subscribe(ARRIVALS.at(), self._on_window)

    async def stop(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            await self._subscription.stop()

    def _on_window(self, delivery: Delivery[ArrivalWindow]) -> None:
        window, now_s = delivery.message, self._runtime.now()
        level, _ = self._levels.get(window.gateway_id, (core.Level(), now_s))
        self._levels[window.gateway_id] = (core.fold(level, window, self._config.alpha), now_s)
        horizon_s = self._config.horizon_s
        live = [level for level, heard_s in self._levels.values() if now_s - heard_s <= 3 * horizon_s]
        self._bus.publish(FORECAST.at(), core.forecast(live, now_s, horizon_s))
