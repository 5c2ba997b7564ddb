"""`dopd decisions` and `dopd explain ID`: what the ratio-planner decided and why.

Consumes the command line and the planner's answer to a `DecisionsRequest`; produces text or JSON on stdout.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import msgspec

from dopd.bus.common import shown
from dopd.errors import ConfigError, DopdError, NoResponders, RequestTimeout
from dopd.obs.explain import table, words
from dopd.runtime.main import add_config_argument
from dopd.supervisor.where import broker, connect
from dopd_proto.control import DecisionRecord, DecisionsReply, DecisionsRequest
from dopd_proto.subjects import DECISIONS

ANSWER_S = 5.0


def decisions(argv: Sequence[str]) -> int:
    """`dopd decisions`: 0 shown, 1 nobody there, 2 wrong command line."""
    parser = _parser("dopd decisions", "List the last decisions of the ratio-planner, the newest last.")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="so many (20)")
    parser.add_argument("--changes", action="store_true", help="only those that change a role")
    args = parser.parse_args(argv)
    limit = 10_000 if args.changes else args.limit
    found = _asked(args, DecisionsRequest(limit=limit))
    if isinstance(found, int):
        return found
    if args.changes:
        found = tuple(record for record in found if record.changes)[-args.limit :]
    print(_json(found) if args.json else table(found))
    return 0


def explain(argv: Sequence[str]) -> int:
    """`dopd explain ID`: 0 shown, 1 no such decision or nobody there, 2 wrong command line."""
    parser = _parser("dopd explain", "Tell one decision in words.")
    parser.add_argument("decision_id", metavar="ID", help="as `dopd decisions` shows it, or its beginning")
    args = parser.parse_args(argv)
    found = _asked(args, DecisionsRequest(decision_id=args.decision_id))
    if isinstance(found, int):
        return found
    if len(found) > 1:
        print(f"dopd explain: {len(found)} decisions begin with {args.decision_id!r}", file=sys.stderr)
        return 1
    print(_json(found[0]) if args.json else words(found[0]))
    return 0


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--nats", metavar="URL", help="the broker (default: the one of `dopd up`, or the config's)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config_argument(parser)
    return parser


def _json(value: DecisionRecord | tuple[DecisionRecord, ...]) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _asked(args: argparse.Namespace, request: DecisionsRequest) -> tuple[DecisionRecord, ...] | int:
    """The decisions, or the exit code."""
    try:
        return asyncio.run(_ask(*broker(args.nats, args.config), request))
    except ConfigError as error:
        print(f"dopd: {error}", file=sys.stderr)
        return 2
    except DopdError as error:
        print(f"dopd: {error}", file=sys.stderr)
        return 1


async def _ask(url: str, ca_file: str, request: DecisionsRequest) -> tuple[DecisionRecord, ...]:
    bus = await connect(url, ca_file, "dopd-decisions")
    try:
        return (await bus.request(DECISIONS.at(), request, (DecisionsReply,), timeout_s=ANSWER_S)).decisions
    except NoResponders:
        raise NoResponders(f"no ratio-planner listens at {shown(url)}; is the cluster up?") from None
    except RequestTimeout:
        raise RequestTimeout(f"the ratio-planner did not answer in {ANSWER_S:.0f} s") from None
    finally:
        await bus.drain(timeout_s=1.0)
