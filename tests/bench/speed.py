"""What a virtual run costs: CPU time, requests and tokens per second of it, memory, and where the time goes.

Consumes a schedule and a config; produces the `Run`, and prints the figures. CPU time of one process is the measure,
because others may use the machine; where it goes is sampled by a timer that counts the same.
"""

import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dopd.config import Config
from dopd_loadgen.drive import Progress
from dopd_loadgen.model import Planned, Run
from dopd_loadgen.prompts import token_prompt
from dopd_loadgen.sim import Simulation, simulate
from tests.integration.replay import be_quiet

ROOT = Path(__file__).parents[2]
EVERY_S = 0.02
TIMEOUT_S = 600.0


def measured(schedule: Sequence[Planned], config: Config, span_s: float) -> Run:
    """Run it in virtual time and print what it cost."""
    be_quiet()
    tokens = sum(planned.osl_tokens for planned in schedule)
    served_by = f"{config.cluster.prefill}P{config.cluster.decode}D {config.engine.profile} {config.policy.name}"
    print(f"\n{len(schedule)} requests, {tokens} output tokens, {span_s:g} s, {served_by}")
    what = Simulation(config, 1, lambda planned: token_prompt(planned, 1, 3, 32_000), TIMEOUT_S, span_s)
    began_s = time.process_time()
    with _sampled() as places:
        run = simulate(schedule, what, Tell(began_s, span_s / 8))
    took_s = time.process_time() - began_s
    made = sum(len(record.times_s) for record in run.records)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{took_s:.1f} s of CPU: {len(run.records) / took_s:.0f} requests/s, {made / took_s:.0f} tokens/s, "
          f"{span_s / took_s:.0f} times real time; {peak_gib:.2f} GiB at most")  # fmt: skip
    print(f"{made} tokens were made, {sum(bool(record.failure) for record in run.records)} requests failed")
    print("Where the time goes, by the innermost module of ours:")
    for place, count in places.most_common(16):
        print(f"  {count / places.total():6.1%}  {place}")
    return run


class Tell:
    """A line of progress every so many simulated seconds."""

    def __init__(self, began_s: float, every_s: float) -> None:
        self._began_s, self._every_s, self._next_s = began_s, every_s, every_s

    def __call__(self, progress: Progress) -> None:
        if progress.elapsed_s >= self._next_s:
            self._next_s += self._every_s
            cpu_s = time.process_time() - self._began_s
            print(f"  {progress.elapsed_s:.0f} s simulated, {progress.done} done, {cpu_s:.0f} s of CPU", flush=True)


@contextmanager
def _sampled() -> Iterator[Counter[str]]:
    places: Counter[str] = Counter()

    def look(_: int, frame: FrameType | None) -> None:
        place = "other"
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(str(ROOT)) and "/site-packages/" not in path and path != __file__:
                place = str(Path(path).relative_to(ROOT))
                break
            frame = frame.f_back
        places[place] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    try:
        yield places
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
