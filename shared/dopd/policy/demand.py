"""What is wanted of the workers: prefill and decode work, from the forecast, what waits and what is seen. Pure.

Consumes a forecast, the pools and the cluster; produces a `Demand` (work per second) and the `Decoder` that it is for
(algorithms.md 1.5 in rate form, 1.13, D20).
"""

from math import exp, isfinite
from statistics import median

from dopd.cluster import ClusterView
from dopd.perf.model import step_s
from dopd.perf.profile import Profile
from dopd.policy.base import ForecastView
from dopd.policy.capacity import Decoder, Demand, Prompts, prompts_of
from dopd.policy.split import Pools
from dopd.slo import Slo

BUSY_S, IDLE_S, SURPRISE = 5.0, 0.1, 1.4
"""Where prefill workers have less than 0.1 s of prompts waiting, no more than 1.4 times the work comes that has kept
them busy in the last seconds, whatever the forecast says: a forecast is slow to see that prompts are over."""
BAND = 0.15
"""Steps that differ less than this from the profile say nothing."""


class Wanted:
    """Prompts that wait, and can be in time, should be done within `clear_s`. Switches: without `forecast` or
    `variance` the forecast, or the variance of prompt lengths, is left out."""

    def __init__(self, profile: Profile, clear_s: float, forecast: bool, variance: bool) -> None:
        self._profile, self._clear_s, self._forecast, self._variance = profile, clear_s, forecast, variance
        # In a full step of prompts the fixed cost is a tenth of the rest (1.10).
        self._batch_tokens = 10 * profile.prefill_fixed_s / max(1e-9, profile.prefill_token_s)

    def blind(self, forecast: ForecastView | None, now_s: float) -> tuple[str, str]:
        """Why the forecast is not used, and what it lacks; ("", "") when it is."""
        if not self._forecast:
            return "forecast_off", ""
        if forecast is None:
            return "no_forecast", "a forecast; is the forecaster running?"
        if forecast.horizon_s and now_s > forecast.start_s + 2 * forecast.horizon_s:
            return "forecast_stale", "a newer forecast; is the forecaster running?"
        lengths = (forecast.isl_tokens_mean, forecast.osl_tokens_mean, forecast.requests_per_s)
        if not all(isfinite(one) and one >= 0 for one in lengths):
            return "forecast_unknown", "requests that show how long prompts and answers are"
        return "", ""

    def demand(
        self,
        forecast: ForecastView | None,
        pools: Pools,
        cluster: ClusterView,
        slo: Slo,
        correction: float,
        busy: float,
        level: float,
    ) -> tuple[Demand, Decoder, dict[str, float]]:
        """At this quantile of the forecast, with what waits; without a forecast from what is being done. `correction`
        of the profile's steps, `busy` prefill workers. Last the numbers that it came from, for the record."""
        prompts, work, tokens_per_s = self._expected(forecast, level)
        decoding = sum(w.decoding for w in pools.decode)
        seen_tokens = sum(w.context_tokens for w in pools.decode) / decoding if decoding else 0.0
        context = seen_tokens or (prompts.isl_tokens + (forecast.osl_tokens_mean / 2 if forecast else 0.0)) or 1.0
        kv_tokens = min((w.kv_total_tokens for w in pools.decode if w.kv_total_tokens), default=0)
        join_s = self._joining_s(prompts.isl_tokens, forecast.osl_tokens_mean if forecast else 0.0)
        decoder = Decoder(self._profile, slo.tpot_s, context, kv_tokens, correction, join_s)
        workers = sum(pools.split)
        timely = cluster.waiting_prefill_tokens - cluster.late_prefill_tokens  # no split makes late ones good
        waiting = timely + sum(w.queued_prefill_tokens for w in (*pools.prefill, *pools.decode))
        backlog_s = waiting * prompts.token_s
        if forecast is None:
            work = busy
        elif any(w.decoding for w in pools.decode) and backlog_s < IDLE_S * len(pools.prefill):
            work = min(work, SURPRISE * busy + 0.5)
        if forecast is None or _lengths_unknown(forecast):
            tokens_per_s = sum(w.decoding / decoder.step_s(w.decoding) for w in pools.decode if w.decoding)
        made = sum(w.decoding / w.step_s for w in pools.decode if w.step_s)
        unplaced = cluster.waiting_decodes + sum(w.waiting for w in pools.decode if not w.queued_prefill_tokens)
        unplaced += sum(max(0, w.decoding - decoder.bound) for w in pools.decode)
        demand = Demand(
            prefill_work=work + min(backlog_s / self._clear_s, workers),
            tokens_per_s=max(tokens_per_s, made) + min(2 * unplaced / slo.tpot_s, workers * decoder.tokens_per_s),
            context_tokens=context,
            prompts=prompts,
        )
        return demand, decoder, {
            "requests_per_s": forecast.requests_per_s if forecast else 0.0,
            "isl_tokens": prompts.isl_tokens,
            "osl_tokens": forecast.osl_tokens_mean if forecast else 0.0,
            "prefill_work": work,
            "tokens_per_s": tokens_per_s,
            "backlog_s": backlog_s,
            "decode_backlog": unplaced,
            "context_tokens": context,
            "most_requests": decoder.bound,
            "worker_tokens_per_s": decoder.tokens_per_s,
            "correction": correction,
            "busy_prefill": busy,
        }  # fmt: skip

    def _expected(self, forecast: ForecastView | None, level: float) -> tuple[Prompts, float, float]:
        """Prompts, prefill work and output tokens per second at this quantile."""
        if forecast is None:
            return prompts_of(self._profile, self._batch_tokens, 0.0, self._batch_tokens), 0.0, 0.0
        isl_var = forecast.isl_tokens_var if self._variance else 0.0
        prompts = prompts_of(self._profile, forecast.isl_tokens_mean, isl_var, self._batch_tokens)
        work = forecast.requests_per_s * prompts.batched_s * _over("prefill_work", forecast, level)
        tokens_per_s = forecast.requests_per_s * forecast.osl_tokens_mean * _over("decode_work", forecast, level)
        return prompts, work, tokens_per_s

    def _joining_s(self, isl_tokens: float, osl_tokens: float) -> float:
        """The mean rest of a prompt beyond whole chunks, computed where it is decoded, per output token."""
        rest_tokens = min(isl_tokens, self._profile.chunk_tokens / 2)
        return rest_tokens * self._profile.prefill_token_s / osl_tokens if osl_tokens >= 1 else 0.0

    def corrected(self, before: float, pools: Pools) -> float:
        """Observed over predicted decode step (D20), within a half and twice, followed slowly."""
        ratios = [
            w.step_s / step_s(self._profile, 0, 0, w.decoding, w.context_tokens)
            for w in pools.decode
            if w.step_s and w.decoding and not w.queued_prefill_tokens
        ]
        if not ratios:
            return before
        observed = min(2.0, max(0.5, median(ratios)))
        return 0.9 * before + 0.1 * (observed if abs(observed - 1) > BAND else 1.0)


def _lengths_unknown(forecast: ForecastView) -> bool:
    """No answer has ended: what is known of their length is the limit that was asked for."""
    answers = forecast.series.get("osl_tokens_mean")
    return answers is not None and answers.reason == "osl_from_limit"


def _over(name: str, forecast: ForecastView, level: float) -> float:
    """The quantile of this series over its mean; that of the requests where the series is not told."""
    series = forecast.series.get(name) or forecast.series.get("requests_per_s")
    if series is None or not series.point > 0:
        return 1.0
    over = series.at(level) / series.point
    return over if isfinite(over) else 1.0


def busy_of(before: float, since_s: float, pools: Pools, now_s: float) -> float:
    """Prefill workers at work, as a mean that fades: it was `before` at `since_s`."""
    seen = float(sum(1 for w in pools.prefill if w.running or w.waiting or w.queued_prefill_tokens))
    kept = exp(-(now_s - since_s) / BUSY_S) if now_s >= since_s else 0.0
    return kept * before + (1 - kept) * seen
