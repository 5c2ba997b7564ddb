"""From a `WorkloadSpec` to the requests of a run: `plan` makes them, `describe` says what was done.

The order: the source from `start_s` on, `rate_scale`, `loop`, `duration_s` and `num_prompts`, or instead of scaling
new times by `request_rate`; then prompts or lengths that replace the source's; then the model's limits. Everything is
a function of the specification and the files it names.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dopd.errors import LoadError
from dopd_loadgen.model import Planned
from dopd_loadgen.workload import presets, shape, source
from dopd_loadgen.workload.arrivals import enough, steady
from dopd_loadgen.workload.chance import generator
from dopd_loadgen.workload.expression import arrivals_of, lengths_of
from dopd_loadgen.workload.lengths import fixed
from dopd_loadgen.workload.load import Load, load
from dopd_loadgen.workload.read import SECONDS_LIMIT, Trace, format_of, read_trace
from dopd_loadgen.workload.servegen import lengths_beside, read_servegen
from dopd_loadgen.workload.sharegpt import Count, read_sharegpt
from dopd_loadgen.workload.spec import SYNTHETIC, WorkloadSpec, check, check_format

Pool = Callable[[int | None], Trace]
"""The first n requests of a source, or all for None; fewer when it has no more."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What happened on the way: the format, rows left out and values clipped, by reason."""

    format: str
    left_out: dict[str, int] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)


class Schedule(list[Planned]):
    """The requests in order of time with indexes from 0 on, the length of the run, and notes for `describe`."""

    def __init__(self, planned: Sequence[Planned], span_s: float, notes: Notes) -> None:
        super().__init__(planned)
        self.span_s, self.notes = span_s, notes


def plan(spec: WorkloadSpec, count: Count | None = None) -> Schedule:
    """The requests of a load; `count` tells the tokens of a text, for prompts that are given word by word.

    Raises LoadError for a file that cannot be read, for wishes that contradict each other, and for no request.
    """
    check(spec)
    drawn = _drawn(spec, count)
    planned, left_out = drawn.planned, dict(drawn.left_out)
    if not planned:
        raise LoadError("--duration-s", f"no request of {spec.source} lies in the time that is asked for")
    if spec.sharegpt is not None:
        prompts = _prompts(spec, Path(spec.sharegpt), count, len(planned))
        _reaches(len(prompts.planned), len(planned), "--num-prompts")
        left_out |= prompts.left_out
        planned = [replace(words, at_s=one.at_s) for words, one in zip(prompts.planned, planned, strict=True)]
    isl, osl = (text and lengths_of(flag, text) for flag, text in (("--isl", spec.isl), ("--osl", spec.osl)))
    if spec.source != SYNTHETIC or spec.sharegpt is not None:
        planned = shape.with_lengths(planned, generator(spec.seed, "lengths"), isl or None, osl or None)
    planned, cut = shape.clip(planned, spec.max_isl, spec.max_osl, spec.max_model_len)
    found = drawn.format if spec.path else "synthetic" if spec.source == SYNTHETIC else "preset"
    span_s = planned[-1].at_s if spec.duration_s is None else spec.duration_s
    return Schedule(shape.numbered(planned), span_s, Notes(found, left_out, drawn.clipped | cut))


def describe(spec: WorkloadSpec, planned: Schedule) -> dict[str, Any]:
    """What is stored with the results: wishes that are not the default, files by content, what was left out."""
    default = WorkloadSpec(source="")
    wishes = {one.name: getattr(spec, one.name) for one in fields(spec)}
    wishes = {name: "inf" if value == math.inf else value for name, value in wishes.items()}
    read = [path for path in (spec.path, Path(spec.sharegpt) if spec.sharegpt else None) if path]
    if spec.path and planned.notes.format == "servegen":
        read.append(lengths_beside(spec.path))
    return {
        "spec": {name: value for name, value in wishes.items() if value != getattr(default, name)},
        "format": planned.notes.format,
        "sha256": {str(path): source.sha256(path) for path in read},
        "requests": len(planned),
        "span_s": planned.span_s,
        "input_tokens": sum(one.isl_tokens for one in planned),
        "output_tokens": sum(one.osl_tokens for one in planned),
        "left_out": planned.notes.left_out,
        "clipped": planned.notes.clipped,
    }


# ------------------------------------------------------------------------------------------------------------- sources


def _drawn(spec: WorkloadSpec, count: Count | None) -> Trace:
    path = spec.path
    if path is None:
        return _from_load(spec)
    format = spec.format or format_of(path)
    check_format(spec, format)
    if format == "servegen":
        return _from_servegen(spec, path)
    if format == "sharegpt":
        return _retimed(spec, lambda n: _prompts(spec, path, count, n))
    return _from_trace(spec, path)


def _from_load(spec: WorkloadSpec) -> Trace:
    inner = _synthetic(spec) if spec.source == SYNTHETIC else _preset(spec)

    def first(n: int | None) -> Trace:
        assert n is not None, "a load without an end is asked for a number"
        duration_s = 64.0
        while True:
            found = shape.cut(inner(generator(spec.seed, "source"), spec.start_s + duration_s), spec.start_s)
            if len(found) >= n:
                return Trace("simple", found[:n])
            duration_s *= 2
            if duration_s > SECONDS_LIMIT:
                raise LoadError("--num-prompts", f"{spec.source} gives only {len(found)} requests in ten years")

    if spec.request_rate is not None:
        return _retimed(spec, first)
    if spec.duration_s is None:
        return Trace("simple", shape.scale(first(spec.num_prompts).planned, spec.rate_scale))
    end_s = spec.start_s + spec.duration_s * spec.rate_scale
    found = shape.cut(inner(generator(spec.seed, "source"), end_s), spec.start_s)
    return Trace("simple", shape.cut(shape.scale(found, spec.rate_scale), num_prompts=spec.num_prompts))


def _preset(spec: WorkloadSpec) -> Load:
    # A part's length is of the run; scaling the rate would shorten it.
    return presets.preset(spec.source, (spec.part_s or presets.SHIFT_PART_S) * spec.rate_scale)


def _synthetic(spec: WorkloadSpec) -> Load:
    arrivals = arrivals_of("--arrivals", spec.arrivals) if spec.arrivals else steady(1.0)
    isl, osl = (
        lengths_of(flag, text) if text else fixed(1) for flag, text in (("--isl", spec.isl), ("--osl", spec.osl))
    )
    return load(arrivals, isl, osl)


def _from_trace(spec: WorkloadSpec, path: Path) -> Trace:
    whole = spec.loop or spec.request_rate is not None or spec.duration_s is None
    end_s = math.inf if whole else spec.start_s + (spec.duration_s or 0.0) * spec.rate_scale
    read = read_trace(path, spec.format, spec.sort, end_s)
    planned = shape.scale(shape.cut(read.planned, spec.start_s), spec.rate_scale)
    if not planned:
        raise LoadError("--start-s", f"no request of {path} at {spec.start_s:g} s or later in the time asked for")
    rng = generator(spec.seed, "loop")
    if spec.request_rate is not None:
        looped = spec.loop
        return _retimed(
            spec,
            lambda n: replace(
                read, planned=shape.loop(planned, rng, num_prompts=n, turn_first=spec.turn) if looped else planned[:n]
            ),
        )
    if spec.loop:
        planned = shape.loop(planned, rng, spec.duration_s or math.inf, spec.num_prompts, spec.turn)
    elif read.whole:
        _reaches_end(spec, planned)
    return replace(read, planned=shape.cut(planned, 0.0, spec.duration_s or math.inf, spec.num_prompts))


def _from_servegen(spec: WorkloadSpec, path: Path) -> Trace:
    assert spec.duration_s is not None, "checked"
    end_s = spec.start_s + spec.duration_s * spec.rate_scale
    read = read_servegen(path, spec.servegen_model, generator(spec.seed, "source"), spec.start_s, end_s)
    planned = shape.scale(shape.cut(read.planned, spec.start_s), spec.rate_scale)
    return replace(read, planned=shape.cut(planned, num_prompts=spec.num_prompts))


def _prompts(spec: WorkloadSpec, path: Path, count: Count | None, n: int | None) -> Trace:
    """Prompts word by word in an order by the seed, at 0 s; again from the first when there are too few and `loop`."""
    if count is None:
        raise LoadError("--tokenizer", f"the prompts of {path} need the served model's tokenizer to be counted")
    limits = [limit for limit in (spec.max_isl, spec.max_model_len and spec.max_model_len - 1) if limit]
    read = read_sharegpt(path, count, generator(spec.seed, "sharegpt"), n, min(limits, default=None))
    planned = [Planned(0, 0.0, one.isl_tokens, one.osl_tokens, text=one.text) for one in read.prompts]
    return Trace("sharegpt", list(islice(cycle(planned), n)) if spec.loop else planned, read.left_out)


# --------------------------------------------------------------------------------------------------------------- times


def _retimed(spec: WorkloadSpec, pool: Pool) -> Trace:
    """As many requests as are asked for, or as fill the duration, at times by `request_rate` and `burstiness`."""
    rate = spec.request_rate
    assert rate is not None, "only called with one"
    wanted = spec.num_prompts
    if wanted is None and spec.duration_s is not None:
        wanted = int(enough(rate * spec.duration_s) * 1.1) + 100
    while True:
        drawn = pool(wanted)
        if spec.num_prompts is not None:
            _reaches(len(drawn.planned), spec.num_prompts, "--num-prompts")
        timed = shape.retime(drawn.planned, generator(spec.seed, "times"), rate, spec.burstiness)
        if spec.duration_s is None or spec.num_prompts is not None or timed[-1].at_s >= spec.duration_s:
            return replace(drawn, planned=shape.cut(timed, 0.0, spec.duration_s or math.inf))
        assert wanted is not None, "set where there is a duration"
        _reaches(len(drawn.planned), wanted, "--duration-s")
        wanted *= 2


def _reaches(found: int, wanted: int, flag: str) -> None:
    if found < wanted:
        raise LoadError(flag, f"the source has only {found} requests; --loop repeats them")


def _reaches_end(spec: WorkloadSpec, planned: Sequence[Planned]) -> None:
    last_s = planned[-1].at_s * (1 + 1 / len(planned))
    if spec.num_prompts is not None:
        if spec.duration_s is None or last_s < spec.duration_s:
            _reaches(len(planned), spec.num_prompts, "--num-prompts")
    elif spec.duration_s is not None and last_s < spec.duration_s:
        reason = (
            f"{spec.source} ends {last_s:.6g} s after --start-s, {spec.duration_s:g} s are asked for; --loop repeats it"
        )
        raise LoadError("--duration-s", reason)
