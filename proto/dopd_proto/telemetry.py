"""States and observations: what processes say of themselves, and what is counted and forecast."""

from typing import Literal

from dopd_proto.asked import Feature
from dopd_proto.base import Message, Role

Phase = Literal["starting", "serving", "draining", "stalled", "failed", "stopping"]


class Grant(Message):
    """Admission credit of one gateway at a worker, cumulative like a flow-control window.

    `received` counts work accepted from this gateway incarnation, `limit` how much it may have sent in all, `batches`
    the token batches sent to it, so that a lost last one is noticed.
    """

    gateway_id: str
    gateway_incarnation: str
    received: int
    limit: int
    batches: int = 0


class WorkerState(Message):
    """A worker's own word on itself; published on every change and as a heartbeat. It lapses after `lease_s`.

    `accepting_at_s` is when the present role began to take work, `drained_at_s` when the last work of the old one
    was gone (None: still draining). Token counts: `queued_prefill_tokens` is prompt work not yet computed,
    `context_tokens` the live context of decoding requests. `kv_shared` names the store behind that of its domain which
    other domains share, while it is in reach from here; a token of KV takes `kv_shared_token_s` more through it, and
    `kv_far_tokens` of what was fetched had been computed in another domain. `engine` is the kind of engine, on `gpus`
    GPUs: workers that say the same can take each other's role. `features`: what of a request it does that not every
    engine does.
    """

    worker_id: str
    incarnation: str
    role: Role
    epoch: int
    phase: Phase
    model: str
    kv_domain: str
    sent_s: float
    lease_s: float
    decision_id: str = ""
    accepting_at_s: float = 0.0
    drained_at_s: float | None = None
    steps: int = 0
    running: int = 0
    waiting: int = 0
    decoding: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    store_total_tokens: int = 0
    store_ok: bool = True
    kv_misses: int = 0
    kv_shared: str = ""
    kv_shared_token_s: float = 0.0
    kv_far_tokens: int = 0
    max_model_len: int = 0
    gpus: int = 1
    engine: str = ""
    features: tuple[Feature, ...] = ()
    grants: tuple[Grant, ...] = ()


class GatewayState(Message):
    """A gateway's heartbeat. When it lapses, workers abort what they do for that incarnation.

    Of the requests that wait here, `waiting_prefill_tokens` are to be computed, and `waiting_decodes` only need a
    place to decode.
    """

    gateway_id: str
    incarnation: str
    sent_s: float
    lease_s: float
    waiting: int = 0
    running: int = 0
    waiting_prefill_tokens: int = 0
    waiting_decodes: int = 0
    late_prefill_tokens: int = 0


class ArrivalWindow(Message):
    """Arrivals counted at one gateway in [start_s, end_s), on arrival and never on completion.

    `isl_tokens_histogram[b]` counts prompts whose length has b bits (2^(b-1) to 2^b - 1 tokens). `traceparent` is the
    span of the window (W3C Trace Context), "" while tracing is off.
    """

    gateway_id: str
    incarnation: str
    start_s: float
    end_s: float
    requests: int
    isl_tokens_sum: int
    isl_tokens_square_sum: int
    osl_tokens_limit_sum: int
    isl_tokens_histogram: tuple[int, ...] = ()
    traceparent: str = ""


class OutcomeWindow(Message):
    """Requests that ended at one gateway in [start_s, end_s). Sums are over the completed ones.

    `made_tokens` are all output tokens that came in this window, also of requests that still run or failed;
    `made_context_tokens` sums over them the context (prompt and output so far) that each was made from.
    """

    gateway_id: str
    incarnation: str
    start_s: float
    end_s: float
    completed: int
    failed: int
    osl_tokens_sum: int
    gateway_ttft_s_sum: float
    tpot_s_sum: float
    kv_miss_tokens: int = 0
    made_tokens: int = 0
    made_context_tokens: int = 0


class SeriesForecast(Message):
    """One series' mean over the horizon, by the model that was best of late.

    `quantiles` are at the `quantile_levels` of the `Forecast`. `error` is that model's recent sum of absolute errors
    over the sum of what came, None while nothing has come; `scored` how many forecasts were compared with what came.
    `reason` says what to beware of, "" for nothing: no_history, short_history, no_requests, osl_from_limit, or why a
    fit is not what it should be.
    """

    name: str
    model: str
    point: float
    quantiles: tuple[float, ...]
    error: float | None = None
    scored: int = 0
    reason: str = ""


class Forecast(Message):
    """What is expected in [start_s, start_s + horizon_s), summed over gateways.

    `model` is that of the request rate. Of `series`, `prefill_work` and `decode_work` are seconds of engine time per
    second, the rest is named as the fields are. `bins` of `bin_s` are known; `reason` is that of the request rate.
    `traceparent` is the span in which it was made.
    """

    start_s: float
    horizon_s: float
    model: str
    requests_per_s: float
    isl_tokens_mean: float
    isl_tokens_var: float
    osl_tokens_mean: float
    bins: int = 0
    bin_s: float = 0.0
    reason: str = ""
    quantile_levels: tuple[float, ...] = ()
    series: tuple[SeriesForecast, ...] = ()
    traceparent: str = ""
