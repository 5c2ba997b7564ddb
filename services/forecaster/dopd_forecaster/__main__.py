"""`python -m dopd_forecaster`: the forecaster as a process."""

from dopd.perf.profile import named
from dopd.runtime.main import ServiceContext, run_service
from dopd_forecaster.service import Forecaster


async def serve(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    engine = ctx.config.engine
    profiles = (named(engine.profile), named(engine.decode_profile or engine.profile))
    forecaster = Forecaster(ctx.bus, ctx.runtime, ctx.config.forecaster, *profiles)
    await forecaster.start()
    await ctx.stop.wait()
    await forecaster.stop()


if __name__ == "__main__":
    run_service("forecaster", serve)
