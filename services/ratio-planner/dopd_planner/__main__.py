"""`python -m dopd_planner`: the ratio-planner as a process."""

import asyncio

from dopd.ledger.jetstream import JetStreamLedger
from dopd.policy import planner_of, policy_of
from dopd.runtime.main import ServiceContext, run_service
from dopd.slo import Slo
from dopd_planner.metrics import PlannerMetrics
from dopd_planner.service import RatioPlanner


async def serve(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    config = ctx.config
    ledger = await JetStreamLedger.open(
        config.cluster.broker_url, ctx.runtime, name="ratio-planner-ledger", ca_file=config.cluster.nats_ca_file
    )
    policy = policy_of(config)
    make = policy.planner
    metrics = PlannerMetrics(ctx.metrics.histogram)
    planner = RatioPlanner(
        "planner", ctx.bus, ledger, ctx.runtime, planner_of(policy, config),
        Slo(config.slo.ttft_s, config.slo.tpot_s), make() if make is not None else None,
        metrics.written, ctx.tracing,
    )  # fmt: skip
    ctx.metrics.add(lambda: metrics.samples(planner))
    await planner.start()
    ctx.readiness.when(lambda: "" if planner.hears_ledger else "the ledger does not answer")
    waits = [asyncio.create_task(ctx.stop.wait()), asyncio.create_task(planner.ended())]
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await planner.stop()
    for wait in done:
        wait.result()  # without its rounds the process must end, and be started anew


if __name__ == "__main__":
    run_service("ratio-planner", serve)
