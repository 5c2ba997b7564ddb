"""`python -m dopd_gateway`: token side, text side, HTTP and NATS in one process."""

import argparse
import asyncio
import os

from dopd.config import EngineConfig, real_engine, served_name
from dopd.engine.sim.tokens import VOCABULARY
from dopd.policy import policy_of
from dopd.runtime.main import ServiceContext, host_name, run_service
from dopd.slo import Slo
from dopd_gateway.api import TextGateway
from dopd_gateway.discovery import Discovery
from dopd_gateway.http import create_app
from dopd_gateway.http_server import HttpServer
from dopd_gateway.keys import Keys
from dopd_gateway.live.service import LivePage
from dopd_gateway.metrics import GatewayMetrics, connections, failures, targets
from dopd_gateway.nats_api import NatsApi
from dopd_gateway.number_tokenizer import NumberTokenizer
from dopd_gateway.over import OnEnded, all_of, log_ended
from dopd_gateway.rate import Rates
from dopd_gateway.service import Gateway
from dopd_gateway.spans import Spans
from dopd_gateway.text import Vocabulary
from dopd_gateway.tokenizer import Tokenizer


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the gateway adds to the common arguments."""
    parser.add_argument("--gateway-id", default=host_name(), help="unique in the cluster (default: this host's name)")


def vocabulary(engine: EngineConfig) -> Vocabulary:
    """The model's tokenizer, or made-up words for the emulated engine."""
    return Tokenizer.load(engine.model) if real_engine(engine) else NumberTokenizer(VOCABULARY)


async def serve(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    config = ctx.config
    words = vocabulary(config.engine)
    policy = policy_of(config)
    metrics = GatewayMetrics(ctx.metrics.histogram)
    listeners: list[OnEnded] = [metrics.ended, log_ended]
    if ctx.tracing is not None:
        listeners.append(Spans(ctx.tracing))
    gateway = Gateway(
        ctx.args.gateway_id, policy, ctx.bus, ctx.runtime, config.gateway, served_name(config.engine),
        on_ended=all_of(listeners), tracing=ctx.tracing,
    )  # fmt: skip
    ctx.metrics.add(lambda: metrics.samples(gateway))
    live = LivePage(ctx, gateway)
    listeners.append(live.ended)
    slo = Slo(config.slo.ttft_s, config.slo.tpot_s)
    ctx.metrics.add(lambda: targets(slo))
    keys = Keys(config.gateway.api_keys_file, os.environ)
    rates = Rates(config.gateway.requests_per_s_per_key, config.gateway.burst_per_key, keys.limit_of)
    api = TextGateway(
        gateway, words, ctx.runtime, slo, config.gateway.timeout_s, config.gateway.chat_max_tokens, rates
    )  # fmt: skip
    nats, app = NatsApi(ctx.bus, api, keys), create_app(api, ctx.bus.max_payload, keys)
    found = Discovery(
        ctx.bus, gateway.incarnation, api.started_s, [*nats.endpoints.values()],
        {"gateway_id": gateway.gateway_id, "model": api.model},
    )  # fmt: skip
    ctx.metrics.add(lambda: failures("nats", nats.failures))
    ctx.metrics.add(lambda: failures("http", app.state.failures))
    http = HttpServer(app, config.gateway.host, config.gateway.port, config.http, config.worker.stop_grace_s)
    ctx.metrics.add(lambda: connections(http.room))
    await gateway.start()
    await live.start(ctx.operator)
    await nats.start()
    await found.start()
    await http.start()
    ctx.readiness.when(lambda: "" if api.ready() else "no worker serves")
    await ctx.stop.wait()
    await found.stop()
    await asyncio.gather(http.stop(), nats.stop(config.worker.stop_grace_s))
    await gateway.stop()
    await live.stop()


if __name__ == "__main__":
    run_service("gateway", serve, arguments)
