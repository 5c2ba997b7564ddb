"""The forecaster as a service in virtual time: several gateways, a restart, silence, several horizons, ARIMA."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dopd.bus import Delivery
from dopd.bus.memory import MemoryBroker
from dopd.config import Config, ForecasterConfig
from dopd.errors import ConfigError
from dopd.perf.profile import named
from dopd.runtime.virtual import VirtualRuntime, run_virtual
from dopd_forecaster.service import Forecaster
from dopd_loadgen.model import Planned
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.sim import Simulation, Stage, simulate
from dopd_proto.subjects import ARRIVALS, FORECAST, OUTCOMES
from dopd_proto.telemetry import ArrivalWindow, Forecast, OutcomeWindow, SeriesForecast

PROFILE = named("h200-llama-3.1-8b-fp8-tp1")


class Rig:
    """A forecaster, gateways played by the test, and all that was forecast."""

    def __init__(self, config: ForecasterConfig) -> None:
        self.runtime, self.broker = VirtualRuntime(seed=3), MemoryBroker()
        self.bus = self.broker.connect("gateways")
        self.forecaster = Forecaster(self.broker.connect("forecaster"), self.runtime, config, PROFILE)
        self.heard: list[Forecast] = []

    async def start(self) -> None:
        await self.forecaster.start()
        await self.bus.subscribe(FORECAST.at(), self._hear)

    def _hear(self, delivery: Delivery[Forecast]) -> None:
        self.heard.append(delivery.message)

    def tell(self, gateway: str, requests: int, life: int = 1, isl: int = 500, span_s: float = 10.0) -> None:
        """The window that ends now."""
        now_s = self.runtime.now()
        who = {"gateway_id": gateway, "incarnation": f"{gateway}-{life}"}
        ended = OutcomeWindow(
            **who, start_s=now_s - span_s, end_s=now_s, completed=requests, failed=0, osl_tokens_sum=100 * requests,
            gateway_ttft_s_sum=0.0, tpot_s_sum=0.0, made_tokens=100 * requests, made_context_tokens=50_000 * requests,
        )  # fmt: skip
        came = ArrivalWindow(
            **who, start_s=now_s - span_s, end_s=now_s, requests=requests, isl_tokens_sum=isl * requests,
            isl_tokens_square_sum=isl * isl * requests, osl_tokens_limit_sum=400 * requests,
            isl_tokens_histogram=(0,) * isl.bit_length() + (requests,),
        )  # fmt: skip
        self.bus.publish(OUTCOMES.at(gateway_id=gateway), ended)
        self.bus.publish(ARRIVALS.at(gateway_id=gateway), came)

    async def windows(self, count: int, **rates: int) -> None:
        """So many windows of 10 s, in which each gateway counts its requests."""
        for _ in range(count):
            await asyncio.sleep(10.0)
            for gateway, requests in rates.items():
                self.tell(gateway, requests)
        await asyncio.sleep(0.01)


def played(script: Callable[[Rig], Awaitable[None]], **config: object) -> list[Forecast]:
    async def main() -> list[Forecast]:
        rig = Rig(ForecasterConfig(**config))  # type: ignore[arg-type]
        await rig.start()
        await script(rig)
        await rig.forecaster.stop()
        return rig.heard

    return run_virtual(main())


def series(forecast: Forecast, name: str) -> SeriesForecast:
    return next(one for one in forecast.series if one.name == name)


def test_every_window_brings_a_forecast_per_horizon_the_shortest_last() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(3, g1=20)

    heard = played(script)
    assert [one.horizon_s for one in heard] == [300.0, 60.0, 10.0] * 3
    assert [one.start_s for one in heard] == [10.0] * 3 + [20.0] * 3 + [30.0] * 3


def test_gateways_are_summed_and_the_forecast_names_models_errors_and_quantiles() -> None:
    """Of the first bin a forecast is made when g1 has told of it, before anyone knows that there is a g2."""

    async def script(rig: Rig) -> None:
        await rig.windows(20, g1=20, g2=40)

    said = played(script)[-1]
    assert said.requests_per_s == pytest.approx(6.0)
    assert (said.isl_tokens_mean, said.isl_tokens_var, said.osl_tokens_mean) == pytest.approx((500, 0, 100))
    assert (said.bins, said.bin_s, said.reason) == (20, 10.0, "")
    work = series(said, "prefill_work")
    assert work.point == pytest.approx(
        6 * (PROFILE.prefill_fixed_s + 500 * PROFILE.prefill_token_s + 250_000 * PROFILE.prefill_token2_s)
    )
    assert len(work.quantiles) == len(said.quantile_levels) and work.error == pytest.approx(0.0, abs=0.05)
    assert work.model in ForecasterConfig().models and work.scored == 19


def test_a_forecast_from_little_says_so_and_has_a_wide_band() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(1, g1=40)

    said = played(script)[-1]
    rate = series(said, "requests_per_s")
    assert (said.reason, rate.scored, rate.error) == ("short_history", 0, None)
    assert rate.quantiles[0] < 0.6 * rate.point and rate.quantiles[-1] > 1.5 * rate.point


def test_without_a_request_there_is_a_rate_of_nothing_and_no_length() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(15, g1=0)

    said = played(script)[-1]
    assert said.requests_per_s == 0.0 and series(said, "requests_per_s").reason == ""
    assert series(said, "isl_tokens_mean").reason == "no_requests"
    assert series(said, "osl_tokens_mean").reason == "no_requests"


def test_a_restarted_gateway_neither_doubles_nor_halves_the_rate() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(12, g1=20, g2=20)
        await asyncio.sleep(10.0)
        rig.tell("g1", 20)
        rig.tell("g2", 6, life=2, span_s=3.0)
        for _ in range(6):
            await asyncio.sleep(10.0)
            rig.tell("g1", 20)
            rig.tell("g2", 20, life=2)
        await asyncio.sleep(0.01)

    rates = [one.requests_per_s for one in played(script) if one.horizon_s == 10.0]
    assert min(rates[12:]) > 3.0 and max(rates) < 4.2


def test_a_gateway_that_vanishes_is_waited_for_and_then_left_out() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(10, g1=20, g2=20)
        await rig.windows(60, g1=20)

    heard = [one for one in played(script) if one.horizon_s == 10.0]
    assert heard[-1].requests_per_s == pytest.approx(2.0, rel=0.05)
    # while it is waited for, bins come one window late; after that, at once again
    assert heard[-1].start_s == 700.0


def test_when_nobody_counts_nothing_is_said() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(5, g1=20)
        await asyncio.sleep(1000.0)

    assert len(played(script)) == 15


def test_windows_that_cannot_be_are_refused_counted_and_change_nothing() -> None:
    async def script(rig: Rig) -> None:
        await rig.windows(5, g1=20)
        rig.tell("g1", 20)
        rig.tell("g1", -5, life=2)
        rig.tell("g1", 20, span_s=float("nan"))
        await asyncio.sleep(0.01)
        assert rig.forecaster.refused == {"duplicate": 2, "negative": 2, "not_finite": 2}
        await rig.windows(1, g1=20)

    assert played(script)[-1].requests_per_s == pytest.approx(2.0)


def test_arima_is_fitted_and_used_and_all_comes_out_the_same_again() -> None:
    pytest.importorskip("statsmodels")

    async def script(rig: Rig) -> None:
        for number in range(24):
            await rig.windows(1, g1=20 + 5 * (number % 3), g2=10 + number)

    config = {"models": ("arima",), "refit_bins": 20, "horizons_s": (10.0,)}
    heard = played(script, **config)
    rate = series(heard[-1], "requests_per_s")
    assert rate.model == "arima" and rate.point == pytest.approx(5.8, rel=0.15)
    assert series(heard[0], "requests_per_s").reason == "not_fitted"
    assert heard == played(script, **config)


def test_in_a_whole_cluster_the_forecast_is_of_the_load_that_comes() -> None:
    """4 requests/s of 600 tokens in and 40 out for two minutes, seen by the gateway's own windows.

    The last window would end after the load does.
    """
    heard: list[Forecast] = []
    load = [Planned(number, number / 4, 600, 40) for number in range(480)]

    async def listen(stage: Stage) -> None:
        bus = stage.cluster.broker.connect("listener")
        await bus.subscribe(FORECAST.at(), lambda delivery: heard.append(delivery.message))
        await asyncio.sleep(125.0)

    simulate(load, Simulation(
        config=Config(), seed=1, prompt=lambda one: token_prompt(one, 1, 3, 32_000), timeout_s=60.0, span_s=120.0,
        label="steady", beside=listen,
    ))  # fmt: skip
    said = heard[-1]
    assert (said.horizon_s, said.start_s) == (10.0, 110.0)
    assert said.requests_per_s == pytest.approx(4.0, rel=0.03)
    assert (said.isl_tokens_mean, said.osl_tokens_mean) == (pytest.approx(600), pytest.approx(40, rel=0.02))
    context = 40 * 600 + 40 * 39 / 2
    decode_s = 40 * PROFILE.decode_request_s + context * PROFILE.decode_context_s
    assert series(said, "decode_work").point == pytest.approx(4 * decode_s, rel=0.05)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"horizons_s": (15.0,)}, "horizons_s"),
        ({"horizons_s": ()}, "horizons_s"),
        ({"models": ("arimaa",)}, "models"),
        ({"models": ()}, "models"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_its_key(config: dict[str, tuple[object, ...]], key: str) -> None:
    async def make() -> None:
        Rig(ForecasterConfig(**config))  # type: ignore[arg-type]

    with pytest.raises(ConfigError) as error:
        run_virtual(make())
    assert error.value.key == key
