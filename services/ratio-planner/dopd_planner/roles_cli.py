"""`dopd roles`: who does what, and a person's wish that somebody do something else.

Consumes the command line and the planner's answer to a `RolesRequest`; produces a table on stdout. A wish is done when
the worker's own state shows it: what is printed is that read-back, never the plan.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from dopd.bus.common import shown
from dopd.errors import ConfigError, DopdError, NoResponders, RequestTimeout
from dopd.runtime.main import add_config_argument
from dopd.supervisor.where import broker, connect
from dopd_proto.control import RolesReply, RolesRequest, WorkerRow
from dopd_proto.subjects import ROLES

HEADINGS = ("worker", "role", "phase", "epoch", "incarnation", "running", "waiting", "kv", "gpus", "engine", "pinned")
SLACK_S = 5.0  # the planner answers by itself at the time-out; we give up a little later


def main(argv: Sequence[str]) -> int:
    """The command: 0 done, 1 refused or nobody there, 2 wrong command line."""
    args = _parser().parse_args(argv)
    try:
        return asyncio.run(_ask(*broker(args.nats, args.config), _request(args)))
    except ConfigError as error:
        print(f"dopd roles: {error}", file=sys.stderr)
        return 2
    except DopdError as error:
        print(f"dopd roles: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dopd roles", description="Show the workers' roles, or change them.")
    parser.add_argument("--nats", metavar="URL", help="the broker (default: the one of `dopd up`, or the config's)")
    add_config_argument(parser)
    actions = parser.add_subparsers(dest="action", metavar="list | set | pin | unpin")
    actions.add_parser("list", help="show all workers (the default)")
    change = actions.add_parser("set", help="give a worker a role and pin it to that")
    change.add_argument("worker_id", metavar="WORKER")
    change.add_argument("role", choices=("prefill", "decode", "mixed"))
    change.add_argument(
        "--drain",
        choices=("overlap", "migrate", "wait"),
        default="overlap",
        help="what happens to its work in hand: it finishes beside the new (default), moves on, or is waited for",
    )
    change.add_argument(
        "--until",
        choices=("accepting", "drained"),
        default="accepting",
        help="return when it takes work of the new role (default), or when the old work is gone as well",
    )
    change.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="wait this long for the read-back (60)"
    )
    for name, what in (("pin", "keep a worker in its present role"), ("unpin", "leave its role to the planner again")):
        actions.add_parser(name, help=what).add_argument("worker_id", metavar="WORKER")
    parser.set_defaults(action="list")
    return parser


def _request(args: argparse.Namespace) -> RolesRequest:
    if args.action == "set":
        return RolesRequest(
            action="set",
            worker_id=args.worker_id,
            role=args.role,
            drain=args.drain,
            until=args.until,
            timeout_s=args.timeout,
        )
    return RolesRequest(action=args.action, worker_id=getattr(args, "worker_id", ""), timeout_s=10.0)


async def _ask(url: str, ca_file: str, request: RolesRequest) -> int:
    bus = await connect(url, ca_file, "dopd-roles")
    try:
        reply = await bus.request(ROLES.at(), request, (RolesReply,), timeout_s=request.timeout_s + SLACK_S)
    except NoResponders:
        raise NoResponders(f"no ratio-planner listens at {shown(url)}; is the cluster up?") from None
    except RequestTimeout:
        raise RequestTimeout(f"the ratio-planner did not answer in {request.timeout_s + SLACK_S:.0f} s") from None
    finally:
        await bus.drain(timeout_s=1.0)
    print(table(reply.workers))
    if request.action == "set":
        print(read_back(request, reply))
    return 0


def table(rows: Sequence[WorkerRow]) -> str:
    """One line per worker under the headings, and how many GPUs they have in all."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEADINGS))]
    total = f"{len(rows)} workers, {sum(row.gpus for row in rows)} GPUs"
    return "\n".join(
        ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        + [total]
    )


def _cells(row: WorkerRow) -> tuple[str, ...]:
    epoch = f"{row.epoch >> 32}.{row.epoch & 0xFFFFFFFF}"  # lease term and sequence
    load = (str(row.running), str(row.waiting), f"{row.kv_usage:.0%}", str(row.gpus))
    return (row.worker_id, row.role, row.phase, epoch, row.incarnation, *load, row.engine or "-", row.pinned or "-")


def read_back(request: RolesRequest, reply: RolesReply) -> str:
    """How long the change took, as the worker itself shows it."""
    if reply.accepting_s is None:
        return f"{request.worker_id} does not show the role {request.role} yet"
    drained = "still draining" if reply.drained_s is None else f"drained after {reply.drained_s:.3f} s"
    return f"{request.worker_id} takes {request.role} work after {reply.accepting_s:.3f} s, old work {drained}"
