"""`python -m dopd_forecaster`: the forecaster as a process."""

from dopd.runtime.main import ServiceContext, run_service
from dopd_forecaster.service import Forecaster


async def serve(ctx: ServiceContext) -> None:
    """Run until asked to stop."""
    forecaster = Forecaster(ctx.bus, ctx.runtime, ctx.config.forecaster)
    await forecaster.start()
    await ctx.stop.wait()
    await forecaster.stop()


if __name__ == "__main__":
    run_service("forecaster", serve)
