"""A service for tests of the process entry: `python -m tests.e2e.odd_service HOW`."""

import argparse
import asyncio
import sys

from dopd.errors import EngineError
from dopd.runtime.main import ServiceContext, run_service


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("how")
    parser.add_argument("--worker-id", default="")


async def serve(ctx: ServiceContext) -> None:
    if ctx.args.how == "crash":
        raise ValueError("out of luck")
    if ctx.args.how == "fail":
        raise EngineError("no engine here")
    print("serving", file=sys.stderr, flush=True)
    await ctx.stop.wait()
    if ctx.args.how == "deaf":
        await asyncio.sleep(600)


if __name__ == "__main__":
    run_service("odd", serve, arguments)
