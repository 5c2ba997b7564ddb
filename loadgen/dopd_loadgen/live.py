"""`dopd-loadgen run`: a schedule sent at a served system in real time. Consumes its flags; produces a `Run`.

Ctrl-C ends the sending; what is under way has a moment left, and the report is of what was done. A second Ctrl-C ends
the program.
"""

import asyncio
import os
import signal
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import uvloop

from dopd.bus.common import shown
from dopd.errors import LoadError
from dopd_gateway.tokenizer import Tokenizer
from dopd_loadgen.arguments import count, pair, seconds
from dopd_loadgen.drive import DriveSettings, Progress, clock, drive
from dopd_loadgen.goodput import Goodput
from dopd_loadgen.model import Planned, Record, Run, Target
from dopd_loadgen.processes import ClientProcesses
from dopd_loadgen.prompts import text_prompt, token_prompt
from dopd_loadgen.target_http import HttpSettings, HttpTarget
from dopd_loadgen.target_nats import NatsSettings, NatsTarget
from dopd_loadgen.workload import Schedule

TOKENS_PER_S = 20_000
# Ids that text vocabularies have and use for text; the tiny local model's, too.
TOKEN_IDS = (10, 250)


def add_arguments(parser: ArgumentParser) -> None:
    """Where the load goes, and how it is sent."""
    group = parser.add_argument_group("target")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--url", "--base-url", metavar="URL", help="an OpenAI-compatible server (default http://127.0.0.1:8000)"
    )
    where.add_argument("--nats", metavar="URL", help="DOPD's NATS API instead, such as nats://127.0.0.1:4222")
    group.add_argument("--model", default="", help="the model to ask for (default: the first that the server lists)")
    group.add_argument("--tokenizer", metavar="MODEL", help="send text made with this model's tokenizer, not token ids")
    group.add_argument("--token-ids", type=_ids, default=TOKEN_IDS, metavar="LOW:HIGH", help="ids to make prompts of")
    group.add_argument(
        "--prompt-seed",
        type=int,
        metavar="N",
        help="other prompts of the same lengths: a system may have those of an earlier run cached (default: --seed)",
    )
    group.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""), help="default: $OPENAI_API_KEY")
    group.add_argument("--header", nargs="*", default=[], type=pair("="), metavar="KEY=VALUE", help="with each request")
    group.add_argument(
        "--extra-body", type=_json_object, default={}, metavar="JSON", help="fields for each request's body"
    )
    group.add_argument("--endpoint", default="/v1/completions", metavar="PATH", help="default /v1/completions")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=True,
        help="the answer has every token that was asked for (this is the default; for vLLM's command lines)",
    )
    group.add_argument("--no-ignore-eos", action="store_false", dest="ignore_eos", help="let the model end its answers")
    group.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs that the system holds, for figures per GPU"
    )
    client = parser.add_argument_group("client")
    client.add_argument(
        "--max-concurrency", type=count, metavar="N", help="closed loop: at most N at once; not a measure of capacity"
    )
    client.add_argument("--processes", type=count, metavar="N", help="client processes (default: what the load needs)")
    client.add_argument(
        "--ready-check-timeout-sec",
        type=seconds,
        default=30.0,
        metavar="S",
        help="wait so long for a server that starts",
    )


def enough_processes(schedule: Schedule) -> int:
    """One process per 20,000 tokens/s, which keeps its own lateness small; no more than there are cores."""
    tokens_per_s = sum(one.osl_tokens for one in schedule) / max(schedule.span_s, 1.0)
    return min(os.cpu_count() or 1, 1 + int(tokens_per_s / TOKENS_PER_S))


def check_lengths(tokenizer: Tokenizer, schedule: Schedule) -> None:
    """Raises LoadError for a prompt that is too short to be a text."""
    least = len(tokenizer.encode("")) + 1
    short = next((one for one in schedule if not one.text and one.isl_tokens < least), None)
    if short is not None:
        reason = f"request {short.index} has a prompt of {short.isl_tokens} tokens, and no text has less than {least}"
        raise LoadError("--tokenizer", reason)


def counter_of(args: Namespace) -> Callable[[str], int] | None:
    """What counts the tokens of prompts that are given word by word. Raises ConfigError."""
    if args.tokenizer is None:
        return None
    tokenizer = Tokenizer.load(args.tokenizer)
    return lambda text: len(tokenizer.encode(text))


def measured(args: Namespace, schedule: Schedule, goodput: Goodput, tell: Callable[[Progress], None]) -> Run:
    """Send it all. Raises LoadError when the target does not serve, a client process fails, or a prompt cannot be."""
    if args.tokenizer is not None:
        check_lengths(Tokenizer.load(args.tokenizer), schedule)
    make = partial(make_target, Ask.of(args))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        driven = runner.run(_driven(args, make, schedule, tell))
    return Run(
        label=args.label or ("nats" if args.nats else "http"),
        api="nats" if args.nats else "http",
        target=shown(args.nats or args.url or DEFAULT_URL),  # reports are passed on
        model=driven.model,
        seed=args.seed,
        started_unix_s=driven.started_unix_s,
        span_s=schedule.span_s,
        ended_s=max((r.ended_s or 0.0 for r in driven.records), default=0.0),
        slo_ttft_s=goodput.ttft_s,
        slo_tpot_s=goodput.tpot_s,
        slo_e2e_s=goodput.e2e_s,
        records=driven.records,
        max_concurrency=args.max_concurrency,
        gpus=args.gpus,
        gpu_seconds=args.gpus * schedule.span_s,
        interrupted=driven.interrupted,
    )


# --- the target -------------------------------------------------------------------------------------------------------

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Ask:
    """How to ask, as plain data: client processes get it, too."""

    url: str
    nats: bool
    model: str
    tokenizer: str | None
    token_ids: tuple[int, int]
    seed: int
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, args: Namespace) -> "Ask":
        """What the flags come to."""
        common = {
            "temperature": args.temperature,
            "forced": args.ignore_eos,
            # Of trace ids, which name a run's requests wherever traces are kept: a second run has its own.
            "seed": int.from_bytes(os.urandom(6)),
            "ready_timeout_s": args.ready_check_timeout_sec,
        }
        http = {
            "api_key": args.api_key,
            "headers": dict(args.header),
            "extra_body": args.extra_body,
            "path": args.endpoint,
        }
        own = {"timeout_s": args.timeout} if args.nats else http
        url = args.nats or args.url or DEFAULT_URL
        seed = args.seed if args.prompt_seed is None else args.prompt_seed
        return cls(url, bool(args.nats), args.model, args.tokenizer, args.token_ids, seed, {**common, **own})


def make_target(ask: Ask) -> Target:
    """The target, in whatever process. Raises ConfigError for a tokenizer that cannot be had."""
    if ask.nats:
        return NatsTarget(ask.url, ask.model, _prompt(ask), NatsSettings(**ask.settings))
    return HttpTarget(ask.url, ask.model, _prompt(ask), HttpSettings(**ask.settings))


def _prompt(ask: Ask) -> Callable[[Planned], list[int] | str]:
    if ask.tokenizer is None:
        low, high = ask.token_ids
        return lambda planned: token_prompt(planned, ask.seed, low, high)
    tokenizer = Tokenizer.load(ask.tokenizer)
    return lambda planned: text_prompt(planned, ask.seed, tokenizer)


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Driven:
    records: list[Record]
    started_unix_s: float
    interrupted: bool
    model: str


async def _driven(
    args: Namespace, make: Callable[[], Target], schedule: Schedule, tell: Callable[[Progress], None]
) -> _Driven:
    settings = DriveSettings(timeout_s=args.timeout, max_concurrency=args.max_concurrency)
    stop = asyncio.Event()
    processes = args.processes or enough_processes(schedule)
    many = ClientProcesses(make, processes) if processes > 1 else None
    # Also with many: it finds the model, and says at once what is wrong.
    target = make()
    await target.open()
    try:
        if many is not None:
            await many.open()
        _stop_on_interrupt(stop)
        offset_s = time.time() - clock()()
        if many is not None:
            records = await many.drive(schedule, settings, tell, stop)
            zero_s = many.zero_s
        else:
            zero_s = clock()()
            records = await drive(schedule, target, replace(settings, zero_s=zero_s), tell, stop)
    finally:
        if many is not None:
            await many.close()
        await target.close()
    return _Driven(records, zero_s + offset_s, stop.is_set(), target.model)


def _stop_on_interrupt(stop: asyncio.Event) -> None:
    """The first Ctrl-C asks for an end, the second is one."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, ask)


# --- for argparse -----------------------------------------------------------------------------------------------------


def _ids(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(high) - int(low) > 1):
        raise ArgumentTypeError(f"{text!r}: give LOW:HIGH, such as 10:250")
    return int(low), int(high)


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ArgumentTypeError(f"no JSON object: {error}") from error
