"""`python -m dopd_forecaster`: the forecaster as a process."""

from dopd.perf.profile import named
from dopd.policy import forecaster_of, policy_of
from dopd.runtime.main import ServiceContext, run_service
from dopd_forecaster import metrics
from dopd_forecaster.service import Forecaster


async def serve(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    engine = ctx.config.engine
    profiles = (named(engine.profile), named(engine.decode_profile or engine.profile))
    config = forecaster_of(policy_of(ctx.config), ctx.config)
    forecaster = Forecaster(ctx.bus, ctx.runtime, config, *profiles, ctx.tracing)
    ctx.metrics.add(lambda: metrics.samples(forecaster))
    await forecaster.start()
    ctx.readiness.when()
    await ctx.stop.wait()
    await forecaster.stop()


if __name__ == "__main__":
    run_service("forecaster", serve)
