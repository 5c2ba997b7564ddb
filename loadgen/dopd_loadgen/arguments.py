"""The flags of `run` and `sim`, and what they come to. Names that vLLM's benchmark has mean what they mean there.

Consumes a parser, then its result; produces a `WorkloadSpec`, a result folder and metadata.
"""

import json
import math
import re
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopd.bus.common import shown
from dopd_loadgen.goodput import PRESETS as SLO_PRESETS
from dopd_loadgen.model import Run
from dopd_loadgen.report.command import add_figure_arguments
from dopd_loadgen.workload import WorkloadSpec, presets
from dopd_loadgen.workload.spec import SYNTHETIC

SEED = 0
RESULTS = Path("results")


def add_workload(parser: ArgumentParser) -> None:
    """Where the requests come from. docs/workloads.md says more."""
    group = parser.add_argument_group("workload (docs/workloads.md)")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--trace", "--dataset-path", metavar="FILE", help="the requests of a trace, plain or gzip")
    source.add_argument("--preset", choices=presets.names(), help="a load like that of a real service")
    group.add_argument("--request-rate", type=float, metavar="RPS", help="new arrivals at this rate; inf: all at once")
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="SHAPE",
        help="of those arrivals' gamma gaps; 1 is Poisson, less is burstier",
    )
    group.add_argument(
        "--rate-scale", type=float, default=1.0, metavar="X", help="X times the source's rate, bursts kept"
    )
    group.add_argument("--num-prompts", type=int, metavar="N", help="at most so many requests")
    group.add_argument("--loop", action="store_true", help="repeat a trace until the duration or the number is full")
    group.add_argument("--turn", action="store_true", help="with --loop: begin at a random point, drawn by the seed")
    group.add_argument("--sharegpt", metavar="FILE", help="prompts word by word from a file in ShareGPT's form")
    group.add_argument("--seed", type=int, default=SEED, help="of arrivals, lengths and prompts (default 0)")
    add_shape(group)


def add_shape(group: Any) -> None:
    """What is done to a source, and how it is read: where load is run and where policies are compared."""
    group.add_argument(
        "--arrivals", metavar="EXPR", help="of a synthetic load: poisson:rate=5, mmpp:rates=0/9,stays=60/20"
    )
    group.add_argument(
        "--isl",
        "--input-len",
        "--random-input-len",
        metavar="EXPR",
        help="prompt lengths: 1000, or lognormal:mean=1200,p50=800",
    )
    group.add_argument("--osl", "--output-len", "--random-output-len", metavar="EXPR", help="answer lengths, likewise")
    group.add_argument(
        "--duration", "--duration-s", type=float, metavar="S", dest="duration_s", help="length of the schedule, seconds"
    )
    group.add_argument(
        "--start",
        "--start-s",
        type=float,
        default=0.0,
        metavar="S",
        dest="start_s",
        help="seconds of the source to leave out",
    )
    group.add_argument("--sort", action="store_true", help="put a trace's rows in order of time")
    group.add_argument("--format", metavar="NAME", help="the trace's format, where its content does not tell")
    group.add_argument("--servegen-model", metavar="NAME", help="which model of a servegen file")
    group.add_argument(
        "--part", "--part-s", type=float, metavar="S", dest="part_s", help="length of a part of a shift-* preset"
    )
    group.add_argument("--max-isl", type=int, metavar="N", help="clip longer prompts")
    group.add_argument("--max-osl", type=int, metavar="N", help="clip longer answers")
    group.add_argument("--max-model-len", type=int, metavar="N", help="clip what does not fit in the model's context")


def workload_of(args: Namespace) -> WorkloadSpec:
    """What `add_workload` read; `plan` checks it."""
    same = WorkloadSpec.__dataclass_fields__.keys() - {"source"}
    spec = WorkloadSpec(source=args.trace or args.preset or SYNTHETIC, **{name: getattr(args, name) for name in same})
    return _with_defaults(spec) if spec.source == SYNTHETIC else spec


def _with_defaults(spec: WorkloadSpec) -> WorkloadSpec:
    """Of a synthetic load, those of vLLM's benchmark: 1000 requests at once, 1024 tokens in, 128 out."""
    return replace(
        spec,
        request_rate=math.inf if spec.request_rate is None and spec.arrivals is None else spec.request_rate,
        num_prompts=1000 if spec.num_prompts is None and spec.duration_s is None else spec.num_prompts,
        isl=spec.isl if spec.isl or spec.sharegpt else "1024",
        osl=spec.osl if spec.osl or spec.sharegpt else "128",
    )


def add_measure(parser: ArgumentParser) -> None:
    """What is measured, and by which targets."""
    group = parser.add_argument_group("figures (docs/metrics.md)")
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="KEY:MS",
        help=f"targets: ttft:2000 tpot:80 e2el:9000, or one of {', '.join(SLO_PRESETS)} (default ttft:2000 tpot:80)",
    )
    group.add_argument(
        "--timeout", type=seconds, default=600.0, metavar="S", help="of a request, from its intended send"
    )
    group.add_argument("--warmup", type=seconds, default=0.0, metavar="S", help="leave out requests due in the first S")
    group.add_argument("--cooldown", type=seconds, default=0.0, metavar="S", help="and those due in the last S")
    add_figure_arguments(parser)


def add_output(parser: ArgumentParser) -> None:
    """What is written, and where."""
    group = parser.add_argument_group("output")
    group.add_argument("--label", help="name of this run in tables and plots")
    group.add_argument(
        "--save-result", action="store_true", help=f"write result, requests, plots and page to a folder in {RESULTS}/"
    )
    group.add_argument(
        "--save-detailed", action="store_true", help="with vLLM's lists of every request in the JSON as well"
    )
    group.add_argument("--result-dir", type=Path, metavar="DIR", help="write them to this folder")
    group.add_argument(
        "--metadata", nargs="*", default=[], type=pair("="), metavar="KEY=VALUE", help="kept in the result"
    )
    group.add_argument(
        "--traces-out",
        type=Path,
        metavar="FILE",
        help="write the requests' spans: Chrome trace, or OTLP if named *.otlp.json",
    )
    group.add_argument("--quiet", action="store_true", help="no progress display")


def folder_of(args: Namespace, run: Run) -> Path | None:
    """Where results go: `--result-dir`, or a new folder that is called like vLLM's files."""
    if args.result_dir is not None:
        return Path(args.result_dir)
    if not args.save_result:
        return None
    rate = len(run.records) / run.span_s if run.span_s else float("inf")
    when = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time()))
    name = f"{run.label}-{rate:.3g}qps-{run.model.rstrip('/').rsplit('/', 1)[-1]}-{when}"
    return RESULTS / re.sub(r"[^\w.+-]+", "_", name)


def settings_of(args: Namespace) -> dict[str, Any]:
    """Every flag, to be kept with the result; keys, headers and what addresses say of users may be secrets."""
    kept = {name: value for name, value in vars(args).items() if name not in ("api_key", "header", "run")}
    kept |= {name: shown(kept[name]) for name in ("nats", "url") if kept.get(name)}
    return json.loads(json.dumps(kept, default=str))  # type: ignore[no-any-return]


def seconds(text: str) -> float:
    """For argparse: a number of seconds, 0 or more. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r}: give seconds, 0 or more")
    return value


def count(text: str) -> int:
    """For argparse: a whole number above 0. Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def pair(separator: str) -> Callable[[str], tuple[str, str]]:
    """For argparse: a key and a value. What it makes raises ArgumentTypeError."""

    def read(text: str) -> tuple[str, str]:
        key, found, value = text.partition(separator)
        if not found or not key:
            raise ArgumentTypeError(f"{text!r}: give KEY{separator}VALUE")
        return key, value

    return read
